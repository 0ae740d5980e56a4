"""What a user should know of a mixture of experts: how the experts' linears were fitted."""

from __future__ import annotations

from collections.abc import Sequence

from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.quantization.layer_group import LayerGroupInputs


class RoutingNotes:
    """Gathers the linears behind routers, layer group by layer group."""

    def __init__(self) -> None:
        self._routed: list[Linear] = []
        self._unseen: list[Linear] = []

    def add(self, view: LayerGroupInputs) -> None:
        """Take note of a layer group."""
        if view.unseen:
            self._unseen.extend(view.group.linears)
        elif not view.paired:
            self._routed.extend(view.group.linears)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each kind there is."""
        notes = []
        if self._routed:
            notes.append(
                f"a router picks the tokens of {_named(self._routed)}: weights there are fitted to "
                f"what the quantized model sends, and do not make up for errors made before"
            )
        if self._unseen:
            notes.append(
                f"a router sends no token of the calibration samples to {_named(self._unseen)}: "
                f"weights there are rounded to nearest, inputs per token; give more samples"
            )
        return tuple(notes)


def _named(linears: Sequence[Linear]) -> str:
    count = len(linears)
    return linears[0].path if count == 1 else f"{count} linears ({linears[0].path} is the first)"
