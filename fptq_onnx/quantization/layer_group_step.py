"""One layer group on its way through the solver: four steps, each taken once and in this order.

    choose_scales    the smoothing scales that are folded in front of the group
    choose_scheme    one int8 scale for all tokens of its input, or one for each
    round_weights    codes, for the inputs as they will be
    advance          the group's outputs in the float and in the quantized model

What is known of the group's input is behind `GroupInputs`: tokens (layer_group.py), or statistics
alone (from_statistics.py), and then nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.numerics.smoothing_scales import NONE, smoothing_scale
from fptq_onnx.quantization.fold_targets import FoldTarget
from fptq_onnx.quantization.mixed_precision import precision_candidates
from fptq_onnx.quantization.scheme_policies import GroupFacts, ScaleChoice, SchemePolicy
from fptq_onnx.quantization.scheme_search import SchemeSearch
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.weight_rounding import WeightInputs, round_layer_group
from fptq_onnx.scheme.plan import LinearPlan
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]
Rounded = Mapping[str, tuple[Rows, Rows]]


class GroupInputs(GroupFacts, WeightInputs, Protocol):
    """All that the steps ask of a layer group."""

    @property
    def target(self) -> FoldTarget | Declined:
        """What takes the smoothing scales of its input, or why nothing can."""

    @property
    def follows_tokens(self) -> bool:
        """Whether its outputs are computed, and its errors measured."""

    def search(self, planned: Sequence[LinearPlan], method: str) -> SchemeSearch | None:
        """Compares candidates by output error; None where there are no tokens."""

    def advance(self, decided: Sequence[LinearPlan], smoothing: Rows, rounded: Rounded) -> None:
        """Hand the group's outputs on; see `round_layer_group` for what is rounded."""


class LayerGroupStep:
    """Scales, schemes and weights of one layer group.

    decided: the entries of its linears as they are now, in their order.
    smoothing: [K] of its input.
    folded_into: the norm or linear that takes them; None where nothing is folded.
    """

    def __init__(
        self, inputs: GroupInputs, planned: Sequence[LinearPlan], method: str, policy: SchemePolicy
    ) -> None:
        """Start.

        Args:
            inputs: the layer group and what is known of its input.
            planned: the entries of its linears, to start from.
            method: how weights are rounded.
            policy: decides scales and schemes.
        """
        self._inputs, self._method, self._policy = inputs, method, policy
        self._search = inputs.search(planned, method)
        self._choice = ScaleChoice(NONE)
        self._planned = self.decided = list(planned)
        self._rounded: Rounded = {}
        self.smoothing: Rows = np.ones(inputs.group.linears[0].k, np.float32)
        self.folded_into: str | None = None

    def choose_scales(self) -> None:
        """Choose the smoothing scales.

        Raises:
            FptqError: a plan asks for what cannot be folded.
        """
        target = self._inputs.target
        self._choice = self._policy.choose_scales(self._inputs, self._search, self._planned, target)
        equalization = self._choice.equalization
        if equalization != NONE and isinstance(target, FoldTarget):
            self.smoothing = smoothing_scale(equalization, self._inputs.sizes)
            self.folded_into = target.name
        self.decided = [
            replace(entry, fold_site=self.folded_into, equalization=equalization)
            for entry in self._planned
        ]

    def choose_scheme(self) -> None:
        """Choose how the input is rounded."""
        self.decided = self._policy.choose_scheme(
            self._inputs, self._search, self.decided, self._choice, self.smoothing
        )

    def gains_of_precision(self) -> dict[str, float]:
        """By precision that a linear could have, the weights' error relative to the planned one."""
        precisions = dict.fromkeys(
            precision for entry in self._planned for precision in precision_candidates(entry)
        )
        if self._inputs.unseen or self._search is None:
            return dict.fromkeys(precisions, 1.0)
        equalization = self._choice.equalization
        base = self._search.weight_error(equalization)
        return {
            precision: self._search.weight_error(equalization, precision) / base
            if base > 0
            else 1.0
            for precision in precisions
        }

    def round_weights(self, store: WeightStore, shared: SharedRounding) -> None:
        """Round the weights into the store.

        Raises:
            FptqError: a weight cannot be rounded.
        """
        self._rounded = round_layer_group(
            self._inputs, self.decided, self.smoothing, self._method, store, shared,
            keep=self._inputs.follows_tokens,
        )  # fmt: skip

    def advance(self) -> None:
        """Compute what the groups after this one are fed, and forget this one's weights."""
        self._inputs.advance(self.decided, self.smoothing, self._rounded)
        linears = self._inputs.group.linears
        forget_pages(value for linear in linears for value in linear.weight.sources)
