"""The integers that a node of a shape computation gives, element by element."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from fptq_onnx.graph.shapes.dim_arithmetic import Size, Sizes, summed
from fptq_onnx.graph.shapes.shape_table import SizeTable
from fptq_onnx.graph.walk_back import input_of

MOST_INTEGERS = 16
_Rule = Callable[[SizeTable, ir.Node], Sizes | None]
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def number(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _cast(known: SizeTable, node: ir.Node) -> Sizes | None:
    """Between integers: what is divided as floats later gives other numbers."""
    kept = node.attributes["to"].as_int() in (ir.DataType.INT64, ir.DataType.INT32)
    return known.integer(input_of(node, 0)) if kept else None


def _elements(known: SizeTable, node: ir.Node) -> Sizes | None:
    return known.integer(input_of(node, 0))


def shape_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    """What Shape gives."""
    shape = known.shape(input_of(node, 0))
    if shape is None:
        return None
    end = node.attributes.get("end")
    return shape[number(node, "start", 0) : None if end is None else end.as_int()]


def slice_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    """A part of a vector, cut at known places."""
    items, *bounds = (known.integer(operand) for operand in node.inputs)
    if items is None or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    numbers = [bound[0] for bound in bounds if bound]
    if len(numbers) != len(bounds) or any(isinstance(item, str) for item in numbers):
        return None
    start, end, axis, step = (int(item) for item in [*numbers, 0, 1][:2] + [*numbers[2:], 0, 1][:2])
    return items[start:end] if axis in (0, -1) and step == 1 else None


def _gather_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    items, picks = (known.integer(input_of(node, index)) for index in (0, 1))
    if items is None or picks is None or any(isinstance(pick, str) for pick in picks):
        return None
    numbers = [int(pick) for pick in picks]
    if any(not -len(items) <= number < len(items) for number in numbers):
        return None
    return tuple(items[number] for number in numbers)


def _concat_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    parts = [known.integer(operand) for operand in node.inputs]
    if any(part is None for part in parts):
        return None
    return tuple(item for part in parts if part is not None for item in part)


def _filled_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    wanted = known.integer(input_of(node, 0))
    value = node.attributes.get("value")
    if wanted is None or len(wanted) != 1 or not isinstance(wanted[0], int):
        return None
    if wanted[0] > MOST_INTEGERS or value is None or value.as_tensor().dtype not in INTEGERS:
        return None
    return (int(value.as_tensor().numpy().reshape(())),) * wanted[0]


def _pairs(known: SizeTable, node: ir.Node) -> list[tuple[Size, ...]] | None:
    """Elements of all inputs side by side; single ones are repeated."""
    operands = [known.integer(operand) for operand in node.inputs]
    sizes = [len(items) for items in operands if items is not None]
    if len(sizes) != len(operands):
        return None
    longest = max(sizes)
    if any(size not in (1, longest) for size in sizes):
        return None
    full = [items * (longest if len(items) == 1 else 1) for items in operands if items is not None]
    return list(zip(*full, strict=True))


def _arithmetic(op: Callable[[int, int], int]) -> _Rule:
    def rule(known: SizeTable, node: ir.Node) -> Sizes | None:
        numbers = _numbers(_pairs(known, node))
        return None if numbers is None else tuple(op(a, b) for a, b in numbers)

    return rule


def _numbers(pairs: list[tuple[Size, ...]] | None) -> list[tuple[int, ...]] | None:
    """Elements that are all integers."""
    if pairs is None or any(isinstance(item, str) for pair in pairs for item in pair):
        return None
    return [tuple(int(item) for item in pair) for pair in pairs]


def _add_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    """Sums of sizes; a negative number is not added to a name, whose value stays unknown."""
    pairs = _pairs(known, node)
    if pairs is None:
        return None
    if _numbers(pairs) is None and any(i < 0 for pair in pairs for i in pair if isinstance(i, int)):
        return None
    return tuple(summed(pair) for pair in pairs)


def _equal_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    """Decided for all elements, or not at all. A size that is a text is not negative."""
    results: list[Size] = []
    for pair in _pairs(known, node) or []:
        texts = [item for item in pair if isinstance(item, str)]
        numbers = [item for item in pair if isinstance(item, int)]
        if pair[0] == pair[1]:
            results.append(1)
        elif not texts or (numbers and numbers[0] < 0):
            results.append(0)
        else:
            return None
    return tuple(results) or None


def _where_integers(known: SizeTable, node: ir.Node) -> Sizes | None:
    triples = _pairs(known, node)
    if triples is None or any(isinstance(condition, str) for condition, _, _ in triples):
        return None
    return tuple(a if condition else b for condition, a, b in triples)


def _divided(a: int, b: int) -> int:
    return a // b if a >= 0 and b > 0 else 0


INTEGER_RULES: dict[str, _Rule] = {
    "Add": _add_integers,
    "Cast": _cast,
    "Concat": _concat_integers,
    "ConstantOfShape": _filled_integers,
    "Div": _arithmetic(_divided),
    "Equal": _equal_integers,
    "Gather": _gather_integers,
    "Identity": _elements,
    "Mul": _arithmetic(int.__mul__),
    "Reshape": _elements,
    "Shape": shape_integers,
    "Slice": slice_integers,
    "Squeeze": _elements,
    "Unsqueeze": _elements,
    "Where": _where_integers,
}
