"""What decides a layer group's smoothing scales and scheme: a policy, and what it is told.

`AsPlanned` does what a plan says: one that is replayed, or the paper's, which ranges alone decide
before the solver starts (passes/choose_schemes.py). `ByOptions` (scheme_decision.py) decides as
--equalization and --activation-scheme ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.declined import Declined
from fptq_onnx.numerics.int8 import static_scale
from fptq_onnx.numerics.log_equalization import equalized_absmax
from fptq_onnx.numerics.smoothing_scales import NONE, ChannelSizes, smoothing_scale
from fptq_onnx.quantization.fold_targets import FoldTarget
from fptq_onnx.quantization.scheme_search import SchemeSearch
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.activation_stats import ChannelRange
from fptq_onnx.scheme.plan import PER_TOKEN, SKIP, WEIGHT_ONLY, LinearPlan

Scales = NDArray[np.float32]


class GroupFacts(Protocol):
    """What is known of a layer group: with its tokens, or by statistics alone."""

    @property
    def group(self) -> LayerGroup:
        """Its linears."""

    @property
    def ranges(self) -> ChannelRange:
        """Of its input."""

    @property
    def sizes(self) -> ChannelSizes:
        """Of its channels."""

    @property
    def unseen(self) -> bool:
        """Whether no token reaches it."""


@dataclass(frozen=True)
class ScaleChoice:
    """The smoothing scales of a layer group's input.

    equalization: their formula; "none" where nothing is folded.
    declined: why nothing is folded; None where something is.
    left_out: a formula asked for that is left out for a few tokens' sake; "" for nothing.
    """

    equalization: str
    declined: Declined | None = None
    left_out: str = ""


class SchemePolicy(Protocol):
    """Decides for one layer group after the other."""

    def choose_scales(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        target: FoldTarget | Declined,
    ) -> ScaleChoice:
        """Which smoothing scales to fold in front of a group.

        Args:
            facts: of the layer group.
            search: of its output errors; None where no token is known.
            planned: the entries of its linears so far.
            target: what takes smoothing scales, or why nothing can.
        """

    def choose_scheme(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        choice: ScaleChoice,
        smoothing: Scales,
    ) -> list[LinearPlan]:
        """The entries with scheme, static scale and reason.

        Args:
            facts: of the layer group.
            search: of its output errors; None where no token is known.
            planned: the entries of its linears, with what is folded.
            choice: what is folded.
            smoothing: [K] of that.
        """


class AsPlanned:
    """Keeps what the plan says, and fills in static scales that it leaves open."""

    def choose_scales(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        target: FoldTarget | Declined,
    ) -> ScaleChoice:
        """The plan's scales.

        Raises:
            FptqError: they cannot be folded, or not be computed again.
        """
        entry = planned[0]
        if entry.equalization == NONE:
            return ScaleChoice(NONE, Declined(facts.group.x, "the plan equalizes nothing there"))
        if facts.unseen and search is not None:
            raise FptqError(
                f"the plan equalizes the input of {entry.name}, which no token of the calibration "
                f"samples reaches: give more samples"
            )
        problem = (
            target.reason
            if isinstance(target, Declined)
            else target.overflow(smoothing_scale(entry.equalization, facts.sizes))
        )
        if problem:
            raise FptqError(
                f"the plan equalizes the input of {entry.name} by {entry.equalization}, but "
                f"{problem}: use equalization 'none' there"
            )
        return ScaleChoice(entry.equalization)

    def choose_scheme(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        choice: ScaleChoice,
        smoothing: Scales,
    ) -> list[LinearPlan]:
        """The plan's schemes."""
        scale = float(static_scale(equalized_absmax(facts.ranges.absmax, smoothing)))
        return [_with_missing_scale(entry, scale) for entry in planned]


def _with_missing_scale(entry: LinearPlan, scale: float) -> LinearPlan:
    if entry.scheme in (SKIP, WEIGHT_ONLY):
        return entry
    if entry.scheme == PER_TOKEN:
        return replace(entry, input_scale=None)
    return entry if entry.input_scale is not None else replace(entry, input_scale=scale)
