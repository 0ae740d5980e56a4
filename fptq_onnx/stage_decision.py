"""What a stage gets: the divisors folded in front of it, and one scale for all tokens or one each.

Where a few tokens are far larger than the rest, what is fixed by the largest value alone (static
scales, the divisors of LAE and SmoothQuant) serves those tokens and rounds all others away. It is
then left out, whatever the policy or the equalization asks for, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.segments import Stage
from fptq_onnx.calibration.stats import ChannelRange
from fptq_onnx.config import Config
from fptq_onnx.numerics.fold_scales import (
    LAE,
    NONE,
    SEARCHED,
    SMOOTHQUANT,
    ChannelSizes,
    fold_scale,
)
from fptq_onnx.numerics.int8 import static_scale
from fptq_onnx.numerics.log_equalization import equalized_absmax
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.passes.choose_schemes import MASSIVE, UNSEEN
from fptq_onnx.plan import FLOAT, LAE_STATIC, PER_TOKEN, STATIC, WEIGHT_ONLY, LinearPlan
from fptq_onnx.stage_choice import Judge
from fptq_onnx.stage_sites import StageSite

# One scale for all tokens is taken where it adds at most this share to the output error: it costs
# nothing to find at run time.
STATIC_TOLERANCE = 1.02

Divisor = NDArray[np.float32]


class StageFacts(Protocol):
    """What is known of a stage: with its tokens in a walk, by statistics alone without one."""

    @property
    def stage(self) -> Stage:
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


def choose_formula(
    facts: StageFacts,
    judge: Judge | None,
    entries: Sequence[LinearPlan],
    site: StageSite | str,
    config: Config,
) -> tuple[str, str]:
    """Which divisors to fold in front of a stage, and which are left out for a few tokens' sake.

    Args:
        facts: of the stage.
        judge: of its output errors; None without a walk, where nothing is searched.
        entries: the plans of its linears.
        site: where divisors would be folded, or why nowhere.
        config: the equalization asked for, and LAE's thresholds.
    """
    if facts.unseen or isinstance(site, str) or all(entry.scheme == FLOAT for entry in entries):
        return NONE, ""
    if config.equalization == "none":
        return NONE, ""
    if config.equalization == "search":
        assert judge is not None
        formulas = [
            formula for formula in SEARCHED if not site.overflow(fold_scale(formula, facts.sizes))
        ]
        return min(formulas, key=judge.error), ""
    if config.equalization == "smoothquant":
        if site.columns is not None and site.columns.through_attention:
            return NONE, ""  # as its authors leave it
        formula = SMOOTHQUANT
    elif site.norm is None:
        return NONE, ""  # the paper folds into norms only
    else:
        formula = LAE if config.v0 < facts.ranges.tensor_absmax <= config.v1 else NONE
    if formula == NONE or site.overflow(fold_scale(formula, facts.sizes)):
        return NONE, ""
    return (NONE, formula) if _serves_few_tokens(facts, judge, formula) else (formula, "")


def _serves_few_tokens(facts: StageFacts, judge: Judge | None, formula: str) -> bool:
    """Whether a massive token set the divisors so that the weights lose what other tokens need."""
    if judge is None or not judge.loses_tokens(NONE, facts.ranges.tensor_absmax):
        return False
    return judge.token_error(formula) > judge.token_error(NONE)


def wants_static(facts: StageFacts, fold_site: str | None, config: Config) -> bool:
    """Whether the policy gives all tokens one scale, whatever that costs them."""
    full = facts.ranges.tensor_absmax
    if config.policy == "thresholds":
        return full <= config.v0 or (full <= config.v1 and fold_site is not None)
    return config.policy == "static"


def is_static(
    facts: StageFacts,
    judge: Judge | None,
    formula: str,
    divisor: Divisor,
    fold_site: str | None,
    config: Config,
) -> bool:
    """Whether the stage's input gets one scale for all tokens.

    Args:
        facts: of the stage.
        judge: of its output errors; None without a walk.
        formula: of the divisors folded.
        divisor: [K] of that formula.
        fold_site: the norm that takes them, or None.
        config: the policy and its thresholds.
    """
    if facts.unseen or (facts.stage.routed and not facts.ranges.tensor_absmax):
        return False  # calibration saw no token here
    wanted = wants_static(facts, fold_site, config)
    if not wanted and config.policy != "measured":
        return False
    if judge is None:  # without divisors, or where `needs_tokens` saw nothing that needs a look
        return not loses_tokens(facts.ranges.sizes, facts.ranges.tensor_absmax)
    largest = equalized_absmax(facts.ranges.absmax, divisor)
    if judge.loses_tokens(formula, largest):
        return False
    scale = float(static_scale(largest))
    return wanted or (
        judge.error(formula, scale) <= STATIC_TOLERANCE * judge.error(formula)
        and judge.token_error(formula, scale) <= STATIC_TOLERANCE * judge.token_error(formula)
    )


def with_scheme(
    entry: LinearPlan,
    facts: StageFacts,
    divisor: Divisor,
    static: bool | None,
    override: str = "",
) -> LinearPlan:
    """The entry with its scheme and static scale.

    Args:
        entry: as planned, with its equalization.
        facts: of its stage.
        divisor: [K] of its input.
        static: one scale for all tokens, or one each; None keeps what the entry has.
        override: what the options ask for but is left out for a few tokens' sake; "" for nothing.
    """
    if entry.scheme in (FLOAT, WEIGHT_ONLY):
        return entry
    absmax = equalized_absmax(facts.ranges.absmax, divisor)
    scale = float(static_scale(absmax))
    if static is None:
        if entry.scheme == PER_TOKEN:
            return replace(entry, input_scale=None)
        return entry if entry.input_scale is not None else replace(entry, input_scale=scale)
    if facts.unseen:
        return replace(entry, scheme=PER_TOKEN, input_scale=None, reason=UNSEEN)
    reason = f"range {facts.ranges.tensor_absmax:.4g}, {absmax:.4g} where it is rounded"
    if override:
        reason += f"; {MASSIVE}, so {override} is left out"
    if not static:
        return replace(entry, scheme=PER_TOKEN, input_scale=None, reason=reason)
    scheme = LAE_STATIC if entry.equalization == LAE else STATIC
    return replace(entry, scheme=scheme, input_scale=scale, reason=reason)
