"""Which part of a transformer each linear is: its role and the layer it belongs to.

    q, k, v, qkv, ...        its output is read by attention as these
    o                        its input is what attention computed
    gate, up, gate_up; down  their product, one factor through an activation, is the input of down
    fc1; fc2                 an activation of the one is the input of the other, which is added on
    head                     its output is an output of the model
    other                    none of these

Found from the graph alone. Names decide only where the graph leaves two answers: a linear read as
two of q, k and v that is called after one of them, and which of two factors without an activation
is the gate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fptq_onnx.graph.linears.flow import LinearFlow, Origin
from fptq_onnx.graph.linears.layer_index import Unit, layer_of_units
from fptq_onnx.graph.linears.linears import Linear

HEAD, OTHER = "head", "other"
ROLES = (
    "q", "k", "v", "qk", "qv", "kv", "qkv", "o", "gate", "up", "gate_up", "down", "fc1", "fc2",
    HEAD, OTHER,
)  # fmt: skip
_NAMED = {
    part: re.compile(rf"(^|[./])(to_)?({part}|{word})(_proj|_lin|_linear)?$")
    for part, word in (("q", "query"), ("k", "key"), ("v", "value"))
}


@dataclass(frozen=True)
class Block:
    """Where a linear is.

    role: one of ROLES.
    layer: counted from 0 along the residual stream, an encoder's before its decoder's; None
        outside of layers.
    """

    role: str
    layer: int | None

    @property
    def layer_text(self) -> str:
        """The layer for tables."""
        return "-" if self.layer is None else str(self.layer)


def find_blocks(linears: Sequence[Linear]) -> dict[str, Block]:
    """The role and layer of each linear, by name.

    Args:
        linears: all of one graph, in graph order.
    """
    if not linears:
        return {}
    finder = _Finder(LinearFlow(linears))
    finder.find_attention()
    finder.find_mlps()
    layers = layer_of_units(finder.flow, finder.units)
    roles = {linear.name: finder.roles.get(linear.name) or finder.rest(linear)
             for linear in linears}  # fmt: skip
    known = [layers.get(linear.name) for linear in linears]
    found = {}
    for index, linear in enumerate(linears):
        layer = known[index]
        if layer is None and roles[linear.name] == OTHER:
            layer = _around(known, index)
        found[linear.name] = Block(roles[linear.name], layer)
    return found


def _around(known: Sequence[int | None], index: int) -> int | None:
    """The layer of the nearest linears on both sides, where it is the same one."""
    before = next((layer for layer in reversed(known[:index]) if layer is not None), None)
    after = next((layer for layer in known[index + 1 :] if layer is not None), None)
    return before if before == after else None


class _Finder:
    """Roles found so far, and the units they form."""

    def __init__(self, flow: LinearFlow) -> None:
        self.flow = flow
        self.roles: dict[str, str] = {}
        self.units: list[Unit] = []
        self.by_name = {linear.name: linear for linear in flow.linears}

    def find_attention(self) -> None:
        """Q, k, v and o."""
        members: dict[int, list[str]] = {core: [] for core in self.flow.cores.results.values()}
        closing: dict[int, list[str]] = {core: [] for core in members}
        for linear in self.flow.linears:
            parts, cores = self.flow.attention_inputs(linear)
            if parts:
                self.roles[linear.name] = _by_name(parts, linear)
                members[cores[0]].append(linear.name)
        for linear in self.flow.linears:
            if linear.name in self.roles:
                continue
            origins = self.flow.origins(linear.x)
            cores = tuple(sorted({origin.core for origin in origins if origin.core >= 0}))
            # An input of the model among them is the residual stream, not attention alone.
            if len(cores) == 1 and Origin() not in {_bare(origin) for origin in origins}:
                self.roles[linear.name] = "o"
                closing[cores[0]].append(linear.name)
        self.units += [
            Unit("attention", tuple(members[core]), tuple(closing[core]), core)
            for core in members
            if members[core] or closing[core]
        ]

    def find_mlps(self) -> None:
        """Gate, up and down, or fc1 and fc2."""
        for linear in self.flow.linears:
            if linear.name in self.roles:
                continue
            origins = self.flow.origins(linear.x)
            sources = {origin.linear for origin in origins}
            if "" in sources or len(sources) > 2:
                continue
            roles = self._gated(linear) or self._plain(linear, origins)
            if roles:
                self.roles = roles | self.roles  # what was found first stays
                opening = tuple(name for name in roles if name != linear.name)
                self.units.append(Unit("mlp", opening, (linear.name,)))

    def _gated(self, linear: Linear) -> dict[str, str]:
        pair = self.flow.gated(linear)
        if pair is None:
            return {}
        gate, up = pair
        if gate.linear == up.linear:
            return {gate.linear: "gate_up", linear.name: "down"}
        if gate.activated == up.activated and "gate" in self.by_name[up.linear].path.lower():
            gate, up = up, gate
        return {gate.linear: "gate", up.linear: "up", linear.name: "down"}

    def _plain(self, linear: Linear, origins: frozenset[Origin]) -> dict[str, str]:
        sources = {origin.linear for origin in origins}
        if len(sources) != 1 or not any(origin.activated for origin in origins):
            return {}
        if not self.flow.joins_residual(linear):
            return {}
        return {sources.pop(): "fc1", linear.name: "fc2"}

    def rest(self, linear: Linear) -> str:
        """Head or other."""
        ends = self.flow.reaches_output(linear) and not self.flow.joins_residual(linear)
        return HEAD if ends else OTHER


def _bare(origin: Origin) -> Origin:
    return Origin(origin.linear, origin.core)


def _by_name(parts: str, linear: Linear) -> str:
    if len(parts) == 1:
        return parts
    called = [part for part in parts if _NAMED[part].search(linear.path)]
    return called[0] if len(called) == 1 else parts
