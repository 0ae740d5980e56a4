"""Numbers layers along the residual stream.

A unit is one attention or one MLP: linears that read the stream, and those that add to it. Units
have the level of the longest way to them, counted in units: an MLP beside attention (both read one
norm) is on its level, one after it on the next. What the levels hold repeats from layer to layer:

    attention, mlp, attention, mlp                  two levels a layer
    attention and mlp, attention and mlp            one
    attention, attention, mlp, ...                  three, in a decoder with cross-attention

An encoder and its decoder are numbered one after the other: the encoder's layers, then the others.
Where nothing repeats, numbers in names are taken if they fit the levels; else a layer ends where
attention follows an MLP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fptq_onnx.graph.linears.flow import LinearFlow

_NUMBER = re.compile(r"(?:^|[._/])(?:layers?|blocks?|h)[._/](\d+)(?=[._/]|$)")


@dataclass(frozen=True)
class Unit:
    """One attention or one MLP.

    kind: "attention" or "mlp".
    opening: names of the linears that read the residual stream.
    closing: names of those that add to it.
    core: the number of the attention core.
    """

    kind: str
    opening: tuple[str, ...]
    closing: tuple[str, ...]
    core: int = -1


def layer_of_units(flow: LinearFlow, units: Sequence[Unit]) -> dict[str, int]:
    """The layer of every linear in a unit, by name."""
    encoder = _encoder(flow, units)
    if not encoder:
        return _of_stream(flow, units)
    first = _of_stream(flow, [units[index] for index in sorted(encoder)])
    rest = [unit for index, unit in enumerate(units) if index not in encoder]
    after = max(first.values()) + 1
    return first | {name: after + layer for name, layer in _of_stream(flow, rest).items()}


def _encoder(flow: LinearFlow, units: Sequence[Unit]) -> set[int]:
    """Indices of the units that attention in another stream takes keys and values from."""
    closing = {name: index for index, unit in enumerate(units) for name in unit.closing}
    open_cores = {unit.core: index for index, unit in enumerate(units)
                  if unit.kind == "attention" and not unit.closing}  # fmt: skip
    last = {id(linear.nodes[-1]): linear for linear in flow.linears}
    before: dict[int, int] = {}  # by value: a bit for each unit it is computed from
    for node in flow.graph:
        bits = 0
        for value in node.inputs:
            bits |= before.get(id(value), 0)
        linear = last.get(id(node))
        if linear is not None and linear.name in closing:
            bits |= 1 << closing[linear.name]
        for value in node.outputs:
            core = flow.cores.results.get(id(value), -1)
            before[id(value)] = bits | (1 << open_cores[core] if core in open_cores else 0)
    inputs = {linear.name: before.get(id(linear.x), 0) for linear in flow.linears}
    parts = {linear.name: flow.attention_inputs(linear)[0] for linear in flow.linears}
    found = 0
    for unit in units if len(units) > 1 else ():
        queries = [inputs[name] for name in unit.opening if parts[name] == "q"]
        others = [inputs[name] for name in unit.opening if "q" not in parts[name] and parts[name]]
        for query in queries:
            for other in others:
                if other & ~query and query & ~other:
                    found |= other & ~query
    return {index for index in range(len(units)) if found >> index & 1}


def _of_stream(flow: LinearFlow, units: Sequence[Unit]) -> dict[str, int]:
    levels = _levels(flow, units)
    kinds: dict[int, set[str]] = {}
    names: dict[int, list[str]] = {}
    for unit, level in zip(units, levels, strict=True):
        kinds.setdefault(level, set()).add(unit.kind)
        names.setdefault(level, []).extend((*unit.opening, *unit.closing))
    order = sorted(kinds)
    sequence = [frozenset(kinds[level]) for level in order]
    paths = {linear.name: linear.path for linear in flow.linears}
    numbers = (
        _by_period(sequence)
        or _by_name([[paths[name] for name in names[level]] for level in order])
        or _by_kind(sequence)
    )
    layer = dict(zip(order, numbers, strict=True))
    return {name: layer[level] for level in order for name in names[level]}


def _levels(flow: LinearFlow, units: Sequence[Unit]) -> list[int]:
    """How many units are before each one, on the longest way."""
    closing = {name for unit in units for name in unit.closing}
    open_cores = {unit.core for unit in units if unit.kind == "attention" and not unit.closing}
    level: dict[int, int] = {}
    of_core: dict[int, int] = {}
    last = {id(linear.nodes[-1]): linear for linear in flow.linears}
    for node in flow.graph:  # in the order of evaluation
        operands = [value for value in node.inputs if value is not None]
        here = max((level.get(id(value), 0) for value in operands), default=0)
        linear = last.get(id(node))
        if linear is not None:
            here = level.get(id(linear.x), 0) + (linear.name in closing)
        for value in node.outputs:
            core = flow.cores.results.get(id(value))
            if core is not None:
                of_core[core] = max(here, of_core.get(core, 0))
            level[id(value)] = here + (core in open_cores)
    inputs = {linear.name: level.get(id(linear.x), 0) for linear in flow.linears}
    return [
        of_core[unit.core] if unit.kind == "attention" else inputs[unit.closing[0]]
        for unit in units
    ]


def _by_period(sequence: Sequence[frozenset[str]]) -> list[int]:
    """Layer of each level, where the levels are two or more repetitions of one pattern."""
    count = len(sequence)
    for period in range(1, count // 2 + 1):
        if count % period == 0 and all(
            sequence[index] == sequence[index % period] for index in range(count)
        ):
            return [index // period for index in range(count)]
    return []


def _by_name(paths: Sequence[Sequence[str]]) -> list[int]:
    """Layer of each level, where names on a level have one number, and numbers never fall."""
    found: list[int] = []
    for level in paths:
        numbers = {match.group(1) for path in level for match in [_NUMBER.search(path)] if match}
        if len(numbers) != 1 or (found and int(next(iter(numbers))) < found[-1]):
            return []
        found.append(int(numbers.pop()))
    compact: Mapping[int, int] = {n: index for index, n in enumerate(dict.fromkeys(found))}
    return [compact[number] for number in found]


def _by_kind(sequence: Sequence[frozenset[str]]) -> list[int]:
    """Layer of each level: a new one where attention follows an MLP."""
    found, layer, after_mlp = [], 0, False
    for kinds in sequence:
        if after_mlp and "attention" in kinds:
            layer, after_mlp = layer + 1, False
        found.append(layer)
        after_mlp = after_mlp or "mlp" in kinds
    return found
