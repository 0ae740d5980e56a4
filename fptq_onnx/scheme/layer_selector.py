"""Which linears an option means: `role:down`, `layer:0`, `layer:0-3`, or an expression on names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear, LinearScan
from fptq_onnx.graph.linears.roles import ROLES, Block, find_blocks

_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")
_ROLE, _LAYER = "role:", "layer:"

Chooses = Callable[[Linear, Mapping[str, Block]], bool]


def selector(option: str, expression: str) -> Chooses:
    """Whether a linear is meant, given the blocks of all.

    Args:
        option: the command line's name of it, for messages.
        expression: `role:` and one of ROLES, `layer:` and a number or a range with both ends in
            it, or a regular expression that occurs in the node name, module path or weight name.

    Raises:
        FptqError: no such role, no number, or no regular expression.
    """
    if not expression:
        raise FptqError(f"{option} is empty, which would mean every linear: leave it out")
    if expression.startswith(_ROLE):
        role = expression[len(_ROLE) :]
        if role not in ROLES:
            raise FptqError(f"{option} {expression!r} names no role: use one of {', '.join(ROLES)}")
        return lambda linear, blocks: blocks[linear.name].role == role
    if expression.startswith(_LAYER):
        found = _LAYERS.fullmatch(expression[len(_LAYER) :])
        if found is None:
            raise FptqError(
                f"{option} {expression!r} has no layer: write layer:0, or layer:0-3 for a range"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise FptqError(f"{option} {expression!r} ends before it begins: swap the numbers")
        return lambda linear, blocks: first <= _number(blocks[linear.name]) <= last
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise FptqError(f"{option} {expression!r} is not a regular expression: {error}") from error
    return lambda linear, _: linear.matches(pattern)


def select(scan: LinearScan, option: str, expressions: tuple[str, ...]) -> dict[str, str]:
    """Name of each linear that an option means -> the expression that does.

    Raises:
        FptqError: an expression means none; see selector.
    """
    found: dict[str, str] = {}
    if not expressions:
        return found
    blocks = find_blocks(scan.linears)
    for expression in expressions:
        chooses = selector(option, expression)
        chosen = [linear.name for linear in scan.linears if chooses(linear, blocks)]
        if not chosen:
            raise FptqError(
                f"{option} {expression!r} matches no linear: {_hint(expression, scan, blocks)} "
                f"(see `fptq-onnx inspect`)"
            )
        found.update(dict.fromkeys(chosen, expression))
    return found


def _number(block: Block) -> int:
    return -1 if block.layer is None else block.layer


def _hint(expression: str, scan: LinearScan, blocks: Mapping[str, Block]) -> str:
    if expression.startswith(_ROLE):
        there = {block.role for block in blocks.values()}
        return f"the roles here are {', '.join(role for role in ROLES if role in there)}"
    if expression.startswith(_LAYER):
        last = max(_number(block) for block in blocks.values())
        return "no layers were found" if last < 0 else f"the layers here are 0 to {last}"
    example = scan.linears[0]
    return f"names look like {example.path!r} or {example.name!r}"
