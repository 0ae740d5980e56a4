"""Decide scales and schemes as --equalization and --activation-scheme ask.

By output errors where there are tokens to measure them on, and by the paper's thresholds where
those are asked for (scheme/scheme_policy.py).

Where a few tokens are far larger than the rest, what is fixed by the largest value alone (static
scales, the scales of LAE and SmoothQuant) serves those tokens and rounds all others away. It is
then left out, whatever the activation scheme or the equalization asks for, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from fptq_onnx.graph.declined import Declined
from fptq_onnx.numerics.int8 import static_scale
from fptq_onnx.numerics.log_equalization import equalized_absmax
from fptq_onnx.numerics.smoothing_scales import (
    CANDIDATES,
    LAE,
    NONE,
    SMOOTHQUANT,
    smoothing_scale,
)
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.quantization.fold_targets import FoldTarget
from fptq_onnx.quantization.scheme_policies import GroupFacts, ScaleChoice, Scales
from fptq_onnx.quantization.scheme_search import SchemeSearch
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import SKIP, LinearPlan
from fptq_onnx.scheme.scheme_policy import (
    ONE_SCALE,
    UNSEEN,
    asks_for_lae,
    by_thresholds,
    with_scheme,
)

# One scale for all tokens is taken where it adds at most this share to the output error. Above 1,
# since it costs nothing to find at run time; 2 % of a squared error are 0.09 dB of SQNR.
STATIC_TOLERANCE = 1.02


class ByOptions:
    """Decides as the options ask."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def choose_scales(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        target: FoldTarget | Declined,
    ) -> ScaleChoice:
        """By the formula asked for, or the one with the least output error."""
        if isinstance(target, Declined):
            return ScaleChoice(NONE, target)
        asked = self._asked(facts, planned, target)
        if isinstance(asked, Declined):
            return ScaleChoice(NONE, asked)
        if asked == "search":
            assert search is not None
            candidates = [
                equalization
                for equalization in CANDIDATES
                if not target.overflow(smoothing_scale(equalization, facts.sizes))
            ]
            best = min(candidates, key=search.error)
            nothing = Declined(facts.group.x, "no smoothing scales lower the output error")
            return ScaleChoice(best, nothing if best == NONE else None)
        problem = target.overflow(smoothing_scale(asked, facts.sizes))
        if problem:
            return ScaleChoice(NONE, Declined(facts.group.x, problem))
        if _serves_few_tokens(facts, search, asked):
            lost = Declined(facts.group.x, f"{asked} increases the error of most tokens")
            return ScaleChoice(NONE, lost, left_out=asked)
        return ScaleChoice(asked)

    def _asked(
        self, facts: GroupFacts, planned: Sequence[LinearPlan], target: FoldTarget
    ) -> str | Declined:
        """The formula asked for, "search", or why none is."""
        x, config = facts.group.x, self._config
        if facts.unseen:
            return Declined(x, UNSEEN)
        if all(entry.scheme == SKIP for entry in planned):
            return Declined(x, "its linears stay in float")
        if config.equalization == "none":
            return Declined(x, "--equalization none asks for no smoothing scales")
        if config.equalization == "search":
            return "search"
        if config.equalization == "smoothquant":
            if target.in_attention:  # as its authors leave it
                return Declined(x, "SmoothQuant folds nothing through attention")
            return SMOOTHQUANT
        if target.norm is None:  # the paper folds into norms only
            return Declined(x, target.no_norm)
        if not asks_for_lae(facts.ranges.tensor_absmax, config):
            return Declined(x, "its range is not between the thresholds")
        return LAE

    def choose_scheme(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        planned: Sequence[LinearPlan],
        choice: ScaleChoice,
        smoothing: Scales,
    ) -> list[LinearPlan]:
        """One scale for all tokens where the policy, or the measured error, says so."""
        full = facts.ranges.tensor_absmax
        largest = equalized_absmax(facts.ranges.absmax, smoothing)
        wanted, reason = self._wanted(facts, choice, largest)
        no_range = facts.unseen or (facts.group.routed and not full)  # calibration saw no token
        static = not no_range and self._is_static(facts, search, choice, largest, wanted=wanted)
        left_out = choice.left_out
        if wanted and not static and not no_range:
            left_out = left_out or ONE_SCALE
        if facts.unseen:
            reason, left_out = UNSEEN, ""
        return [
            with_scheme(entry, static=static, largest=largest, reason=reason, left_out=left_out)
            for entry in planned
        ]

    def _wanted(self, facts: GroupFacts, choice: ScaleChoice, largest: float) -> tuple[bool, str]:
        """Whether the policy gives all tokens one scale, whatever that costs them; and its words.

        Args:
            facts: of the layer group.
            choice: what is folded.
            largest: max|x / s|.
        """
        full = facts.ranges.tensor_absmax
        rounded = f"{largest:.4g} where it is rounded"
        if self._config.activation_scheme == "thresholds":
            static, reason = by_thresholds(full, self._config, choice.declined)
            of_paper = choice.equalization in (NONE, LAE)
            return static, reason if of_paper else f"{reason}, {rounded}"
        return self._config.activation_scheme == "static", f"range {full:.4g}, {rounded}"

    def _is_static(
        self,
        facts: GroupFacts,
        search: SchemeSearch | None,
        choice: ScaleChoice,
        largest: float,
        *,
        wanted: bool,
    ) -> bool:
        if not wanted and self._config.activation_scheme != "measured":
            return False
        if search is None:  # `needs_tokens` saw nothing that needs a look at tokens
            return not loses_tokens(facts.ranges.sizes, facts.ranges.tensor_absmax)
        equalization = choice.equalization
        if search.loses_tokens(equalization, largest):
            return False
        scale = float(static_scale(largest))
        return wanted or (
            search.error(equalization, scale) <= STATIC_TOLERANCE * search.error(equalization)
            and search.token_error(equalization, scale)
            <= STATIC_TOLERANCE * search.token_error(equalization)
        )


def _serves_few_tokens(facts: GroupFacts, search: SchemeSearch | None, equalization: str) -> bool:
    """Whether a massive token set the scales so that the weights lose what other tokens need."""
    if search is None or not search.loses_tokens(NONE, facts.ranges.tensor_absmax):
        return False
    return search.token_error(equalization) > search.token_error(NONE)
