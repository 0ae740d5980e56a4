"""What a group gets: the scales folded in front of it, and one scale for all tokens or one each.

Where a few tokens are far larger than the rest, what is fixed by the largest value alone (static
scales, the scales of LAE and SmoothQuant) serves those tokens and rounds all others away. It is
then left out, whatever the activation scheme or the equalization asks for, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.int8 import static_scale
from fptq_onnx.numerics.log_equalization import equalized_absmax
from fptq_onnx.numerics.smoothing_scales import (
    CANDIDATES,
    LAE,
    NONE,
    SMOOTHQUANT,
    ChannelSizes,
    smoothing_scale,
)
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.passes.choose_schemes import MASSIVE, UNSEEN
from fptq_onnx.quantization.fold_targets import FoldTarget
from fptq_onnx.quantization.scheme_search import SchemeSearch
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.activation_stats import ChannelRange
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC, WEIGHT_ONLY, LinearPlan

# One scale for all tokens is taken where it adds at most this share to the output error: it costs
# nothing to find at run time.
STATIC_TOLERANCE = 1.02

Scale = NDArray[np.float32]


class StageFacts(Protocol):
    """What is known of a layer group: its tokens, or statistics alone."""

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


def choose_equalization(
    facts: StageFacts,
    search: SchemeSearch | None,
    entries: Sequence[LinearPlan],
    site: FoldTarget | str,
    config: Config,
) -> tuple[str, str]:
    """Which scales to fold in front of a group, and which are left out for a few tokens' sake.

    Args:
        facts: of the layer group.
        search: of its output errors; None from statistics, where nothing is searched.
        entries: the plans of its linears.
        site: where smoothing scales would be folded, or why nowhere.
        config: the equalization asked for, and LAE's thresholds.
    """
    if facts.unseen or isinstance(site, str) or all(entry.scheme == SKIP for entry in entries):
        return NONE, ""
    if config.equalization == "none":
        return NONE, ""
    if config.equalization == "search":
        assert search is not None
        candidates = [
            equalization
            for equalization in CANDIDATES
            if not site.overflow(smoothing_scale(equalization, facts.sizes))
        ]
        return min(candidates, key=search.error), ""
    if config.equalization == "smoothquant":
        if site.columns is not None and site.columns.through_attention:
            return NONE, ""  # as its authors leave it
        equalization = SMOOTHQUANT
    elif site.norm is None:
        return NONE, ""  # the paper folds into norms only
    else:
        equalization = LAE if config.v0 < facts.ranges.tensor_absmax <= config.v1 else NONE
    if equalization == NONE or site.overflow(smoothing_scale(equalization, facts.sizes)):
        return NONE, ""
    return (
        (NONE, equalization)
        if _serves_few_tokens(facts, search, equalization)
        else (equalization, "")
    )


def _serves_few_tokens(facts: StageFacts, search: SchemeSearch | None, equalization: str) -> bool:
    """Whether a massive token set the scales so that the weights lose what other tokens need."""
    if search is None or not search.loses_tokens(NONE, facts.ranges.tensor_absmax):
        return False
    return search.token_error(equalization) > search.token_error(NONE)


def wants_static(facts: StageFacts, fold_site: str | None, config: Config) -> bool:
    """Whether the activation scheme gives all tokens one scale, whatever that costs them."""
    full = facts.ranges.tensor_absmax
    if config.activation_scheme == "thresholds":
        return full <= config.v0 or (full <= config.v1 and fold_site is not None)
    return config.activation_scheme == "static"


def is_static(
    facts: StageFacts,
    search: SchemeSearch | None,
    equalization: str,
    smoothing: Scale,
    fold_site: str | None,
    config: Config,
) -> bool:
    """Whether the layer group's input gets one scale for all tokens.

    Args:
        facts: of the layer group.
        search: of its output errors; None from statistics.
        equalization: of the smoothing scales folded.
        smoothing: [K] of that formula.
        fold_site: the norm that takes them, or None.
        config: the activation scheme and its thresholds.
    """
    if facts.unseen or (facts.group.routed and not facts.ranges.tensor_absmax):
        return False  # calibration saw no token here
    wanted = wants_static(facts, fold_site, config)
    if not wanted and config.activation_scheme != "measured":
        return False
    if (
        search is None
    ):  # without smoothing scales, or where `needs_tokens` saw nothing that needs a look
        return not loses_tokens(facts.ranges.sizes, facts.ranges.tensor_absmax)
    largest = equalized_absmax(facts.ranges.absmax, smoothing)
    if search.loses_tokens(equalization, largest):
        return False
    scale = float(static_scale(largest))
    return wanted or (
        search.error(equalization, scale) <= STATIC_TOLERANCE * search.error(equalization)
        and search.token_error(equalization, scale)
        <= STATIC_TOLERANCE * search.token_error(equalization)
    )


def with_scheme(
    entry: LinearPlan,
    facts: StageFacts,
    smoothing: Scale,
    static: bool | None,
    override: str = "",
) -> LinearPlan:
    """The entry with its scheme and static scale.

    Args:
        entry: as planned, with its equalization.
        facts: of its layer group.
        smoothing: [K] of its input.
        static: one scale for all tokens, or one each; None keeps what the entry has.
        override: what the options ask for but is left out for a few tokens' sake; "" for nothing.
    """
    if entry.scheme in (SKIP, WEIGHT_ONLY):
        return entry
    absmax = equalized_absmax(facts.ranges.absmax, smoothing)
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
