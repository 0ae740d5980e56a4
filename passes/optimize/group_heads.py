"""Multiply the heads that share keys and values with them at once, instead of repeating those.

    MatMul(a [b, h g, s, x], repeated(k) [b, h g, x, y])
    Reshape(MatMul(Reshape(a, [b, h, g s, x]), k [b, h, x, y]), [b, h g, s, y])

`repeated` is Unsqueeze, Expand and Reshape, which write every key and value g times in every
decode step. Head i of the result is made of head i // g of k either way: the same products, summed
in another order where the matrix product works on other shapes. Standard ops, for any mask.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.op_domains import domain_of, is_onnx_op
from fptq_onnx.graph.rewire import follow_with
from fptq_onnx.graph.shapes.dim_arithmetic import Sizes
from fptq_onnx.graph.shapes.shape_table import SizeTable
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes
from fptq_onnx.graph.walk_back import input_of
from fptq_onnx.passes._contract import PassResult, Refusal, rewrite_each
from fptq_onnx.passes._edit import constant_initializer, remove_unused

_SWAP_IN_HEADS = [0, 1, 3, 2]
_REPEATED_AXIS = (2,)


def group_heads(model: ir.Model) -> PassResult:
    """Rewrite in place.

    Args:
        model: its main graph is looked at.
    """
    graph, known = model.graph, known_sizes(model.graph)
    return rewrite_each(
        graph, lambda node: _group(graph, known, node), left="its heads are still repeated"
    )


def _group(graph: ir.Graph, known: SizeTable, node: ir.Node) -> bool:
    if not is_onnx_op(node, "MatMul") or None in node.inputs:
        return False
    path, merge = _to_repeat(node)
    if merge is None:
        return False
    shared, groups, heads = _shared_heads(known, merge)
    _check_rows(known, node.inputs[0], heads)
    _rewrite(graph, node, path, shared, groups, heads)
    _read_shape_of_shared(graph, merge.outputs[0], shared, heads // groups)
    return True


def _to_repeat(node: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """The nodes from the second input back to repeated heads, which treat each head by itself."""
    path: list[ir.Node] = []
    value = node.inputs[1]
    while value is not None and (maker := value.producer()) is not None and domain_of(maker) == "":
        expanded = input_of(maker, 0)
        expand = expanded.producer() if expanded is not None else None
        if maker.op_type == "Reshape" and expand is not None and expand.op_type == "Expand":
            return path, maker
        index = _by_head(maker)
        if index is None:
            break
        path.append(maker)
        value = maker.inputs[index]
    return path, None


def _by_head(node: ir.Node) -> int | None:
    """The input that holds heads, if a node does the same to each of them."""
    if node.op_type in ("Cast", "Identity"):
        return 0
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        return 0 if perm is not None and list(perm.as_ints()) == _SWAP_IN_HEADS else None
    if node.op_type not in ("Mul", "Div"):
        return None
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        factor = constant_of(node.inputs[1 - index])
        if factor is not None and set(factor.shape) <= {1} and len(factor.shape) <= 4:
            return index
    return None


def _shared_heads(known: SizeTable, merge: ir.Node) -> tuple[ir.Value, int, int]:
    """What is repeated, its heads, and those of the result.

    Raises:
        Refusal: it is not certain that nothing else is done.
    """
    expanded = merge.inputs[0]
    expand = expanded.producer() if expanded is not None else None
    inserted = input_of(expand, 0) if expand is not None else None
    insert = inserted.producer() if inserted is not None else None
    if insert is None or not is_onnx_op(insert, "Unsqueeze"):
        raise Refusal("they are not repeated by Unsqueeze, Expand and Reshape")
    shared = insert.inputs[0]
    shape = known.shape(shared)
    if shared is None or shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        raise Refusal(f"the shape {_text(shape)} of keys or values does not tell their heads")
    if known.integer(input_of(insert, 1)) != _REPEATED_AXIS:
        raise Refusal("the axis they are repeated along is not the one behind the heads")
    wide = known.shape(expanded)
    times = wide[2] if wide is not None and len(wide) == 5 else None
    if not isinstance(times, int) or wide != (*shape[:2], times, *shape[2:]):
        raise Refusal(f"{_text(shape)} becomes {_text(wide)}, which may change more than heads")
    heads = shape[1] * times
    merged = known.shape(merge.outputs[0])
    if merged != (shape[0], heads, *shape[2:]):
        raise Refusal(f"{_text(wide)} becomes {_text(merged)}, which may mix heads")
    return shared, shape[1], heads


def _check_rows(known: SizeTable, rows: ir.Value | None, heads: int) -> None:
    shape = known.shape(rows)
    if shape is None or len(shape) != 4 or shape[1] != heads:
        raise Refusal(f"the shape {_text(shape)} of what they are multiplied with is not known "
                      f"to have {heads} heads")  # fmt: skip


def _text(shape: Sizes | None) -> str:
    return "(unknown)" if shape is None else f"[{', '.join(map(str, shape))}]"


def _rewrite(
    graph: ir.Graph, node: ir.Node, path: list[ir.Node], shared: ir.Value, groups: int, heads: int
) -> None:
    """Sizes of 0 in a Reshape are kept: only the heads need to be known."""
    narrow, wide = (
        constant_initializer(graph, f"group_heads/{count}", np.array([0, count, -1, 0], np.int64))
        for count in (groups, heads)
    )
    rows, repeated, old = node.inputs[0], node.inputs[1], node.outputs[0]
    gather = ir.node("Reshape", [rows, narrow], name=f"{node.name}/rows")
    gather.outputs[0].name = f"{old.name}/rows"
    gather.outputs[0].type = rows.type if rows is not None else None
    added, value = [gather], shared
    for number, step in enumerate(reversed(path)):
        index = _by_head(step) or 0
        inputs = [value if place == index else read for place, read in enumerate(step.inputs)]
        again = ir.Node(
            "", step.op_type, inputs, list(step.attributes.values()),
            name=f"{node.name}/shared_{number}",
        )  # fmt: skip
        value = again.outputs[0]
        value.name, value.type = f"{old.name}/shared_{number}", step.outputs[0].type
        added.append(again)
    graph.insert_before(node, added)
    node.replace_input_with(0, gather.outputs[0])
    node.replace_input_with(1, value)
    follow_with(graph, old, ir.node("Reshape", [old, wide], name=f"{node.name}/heads"))
    remove_unused(graph, repeated)


def _read_shape_of_shared(
    graph: ir.Graph, repeated: ir.Value, shared: ir.Value, times: int
) -> None:
    """Where only the shape of repeated heads is read (torchscript cuts masks so), compute that."""
    for use in repeated.uses():
        reader = use.node
        if not is_onnx_op(reader, "Shape"):
            continue
        start, end = (reader.attributes.get(name) for name in ("start", "end"))
        part = slice(
            None if start is None else start.as_int(), None if end is None else end.as_int()
        )
        array = np.array([1, times, 1, 1], np.int64)[part]
        name = f"group_heads/times_{'_'.join(map(str, array))}"
        factors = constant_initializer(graph, name, array)
        shape = reader.outputs[0]
        reader.replace_input_with(0, shared)
        follow_with(graph, shape, ir.node("Mul", [shape, factors], name=f"{reader.name}/repeated"))
    remove_unused(graph, repeated)
