"""Sizes of values and small integers, as far as they are known before a model runs.

A size is an integer or a text. Equal texts are equal sizes: the names the exporter declared
("batch_size", "past + sequence"; a sum is sorted), or one made up for a size nobody knows, which no
other value has. Exporters compute shapes inside the graph (Shape, Gather, Concat, Reshape), so the
integers are followed as well as the sizes, in one pass through the graph.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.dim_arithmetic import Size, Sizes, summed
from fptq_onnx.graph.shapes.integer_rules import INTEGER_RULES, INTEGERS, MOST_INTEGERS
from fptq_onnx.graph.shapes.shape_rules import SHAPE_RULES
from fptq_onnx.graph.shapes.shape_table import SizeTable, own_name


def known_sizes(graph: ir.Graph) -> SizeTable:
    """Follow sizes from the inputs to the end of the main graph."""
    known = SizeTable()
    for value in (*graph.inputs, *graph.initializers.values()):
        _enter(known, value, None)
    for node in graph:
        op_type = node.op_type if domain_of(node) == "" else ""
        shape_rule, integer_rule = SHAPE_RULES.get(op_type), INTEGER_RULES.get(op_type)
        for output in node.outputs:
            _enter(known, output, shape_rule(known, node, output) if shape_rule else None)
        integers = integer_rule(known, node) if integer_rule else None
        shape = known.shape(node.outputs[0])
        if integers is not None and shape is not None and len(shape) <= 1:
            known.integers[id(node.outputs[0])] = integers
    return known


def _is_short(shape: tuple[int, ...]) -> bool:
    return len(shape) <= 1 and math.prod(shape) <= MOST_INTEGERS


def _enter(known: SizeTable, value: ir.Value, made: Sizes | None) -> None:
    """Enter a value with what was declared, completed by what the rule of its node says."""
    declared = _declared(value)
    if declared is None or (made is not None and len(made) != len(declared)):
        sizes = made
    else:
        sizes = tuple(
            _better(size, made[axis] if made is not None else None, f"{own_name(value)}[{axis}]")
            for axis, size in enumerate(declared)
        )
    if sizes is not None:
        known.shapes[id(value)] = sizes
    producer = value.producer()
    given = value.is_initializer() and not value.is_graph_input()
    if given or (producer is not None and producer.op_type == "Constant"):
        constant = constant_of(value)
        if constant is None:
            return
        known.shapes[id(value)] = constant.shape
        if constant.dtype in INTEGERS and _is_short(constant.shape):
            known.integers[id(value)] = tuple(int(item) for item in constant.load().reshape(-1))


def _declared(value: ir.Value) -> list[Size | None] | None:
    if value.shape is None:
        return None
    sizes: list[Size | None] = []
    for size in value.shape:
        if isinstance(size, int):
            sizes.append(size)
        else:
            sizes.append(summed(size.value.split("+")) if size.value else None)
    return sizes


def _better(declared: Size | None, made: Size | None, unknown: str) -> Size:
    if isinstance(declared, int) or (declared is not None and not isinstance(made, int)):
        return declared
    return unknown if made is None else made
