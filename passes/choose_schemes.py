"""Decide how the input of each linear is quantized: as FPTQ does (arXiv 2308.15987, section 3).

    by its range              static, lae_static or per_token    (scheme/scheme_policy.py)
    matched by --ignore       skip         left alone
    a router, or a gate       skip         unless --int8-layers or --quantize-routers asks for it

A static scale that would round most tokens away, since a few are far larger, is not taken: the
input is then per_token, whatever the activation scheme.

Sizes are decided per activation: linears that read the same value get the same scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.gates import find_gates
from fptq_onnx.graph.linears.linears import Linear, LinearScan
from fptq_onnx.graph.linears.shared_weights import decline_fixed, fixed_weights
from fptq_onnx.numerics.group_weights import PER_CHANNEL
from fptq_onnx.numerics.log_equalization import equalization_scale, equalized_absmax
from fptq_onnx.numerics.smoothing_scales import LAE
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.layer_selector import select
from fptq_onnx.scheme.plan import (
    LAE_STATIC,
    PER_TOKEN,
    SKIP,
    STAYS,
    WEIGHT_ONLY,
    LinearPlan,
    Plan,
)
from fptq_onnx.scheme.scheme_policy import (
    MASSIVE,
    ONE_SCALE,
    UNSEEN,
    asks_for_lae,
    by_thresholds,
    with_scheme,
)


def choose_schemes(scan: LinearScan, stats: ActivationStats, config: Config) -> Plan:
    """Choose a scheme for every linear.

    Args:
        scan: the linears of the model.
        stats: channel ranges of all their inputs.
        config: thresholds, group options and the expressions to ignore.

    Returns:
        A Plan with one entry per linear, in graph order.

    Raises:
        FptqError: an --ignore or --int8-layers expression matches nothing, or the statistics do not
            fit the model.
    """
    ignored = select(scan, "--ignore", config.ignore)
    wide = select(scan, "--int8-layers", config.int8_layers)
    fixed = fixed_weights(scan, quantize=config.quantize)
    sites = decline_fixed(find_fold_sites(scan.linears), fixed)
    ranges = {linear.name: range_of(linear, stats) for linear in scan.linears}
    kept = {
        name: f"{STAYS}{how}"
        for name, how in ({} if config.quantize_routers else find_gates(scan.linears)).items()
        if name not in wide
    }
    kept |= {name: f"kept in float by --ignore {which!r}" for name, which in ignored.items()}
    entries = [
        _entry(
            linear,
            ranges,
            sites[linear.name],
            kept.get(linear.name),
            config,
            unseen=stats.ranges[linear.x.name or ""].unseen,
        )
        for linear in scan.linears
    ]
    # 8 bits need no smaller groups, and ONNX Runtime cannot run them in blocks (target qdq).
    entries = [
        replace(entry, weight_bits=8, block_size=PER_CHANNEL)
        if config.weight_bits == 8 or entry.name in wide
        else entry
        for entry in entries
    ]
    return Plan(
        config.v0, config.v1, mark_shared_folds(tuple(entries), sites),
        config.weight_method, config.embedding_bits, config.kv_cache,
    )  # fmt: skip


def mark_shared_folds(
    entries: tuple[LinearPlan, ...], sites: Mapping[str, FoldSite | str]
) -> tuple[LinearPlan, ...]:
    """Give every linear that reads a folded value the fold site, whatever its own scheme.

    Its weight must take the equalization too, even when it stays in float or is per-token.
    """
    by_name = {entry.name: entry for entry in entries}
    folded: dict[str, str] = {}
    for entry in entries:
        site = sites[entry.name]
        if entry.scheme == LAE_STATIC and isinstance(site, FoldSite):
            folded.update(dict.fromkeys(site.linears, site.name))
    for name, site_name in folded.items():
        by_name[name] = replace(by_name[name], fold_site=site_name, equalization=LAE)
    return tuple(by_name[entry.name] for entry in entries)


def range_of(linear: Linear, stats: ActivationStats) -> ChannelRange:
    """The channel ranges of a linear's input; zeros where no token reached it.

    Raises:
        FptqError: the statistics lack it, or have another number of channels.
    """
    channel = stats.ranges.get(linear.x.name or "")
    if channel is None:
        raise FptqError(
            f"the statistics do not cover the input of {linear.name}: they were made for another "
            f"model, calibrate again"
        )
    if channel.low.shape != (linear.k,) or channel.high.shape != (linear.k,):
        raise FptqError(
            f"the statistics have {channel.low.shape[0]} channels for the input of {linear.name}, "
            f"the model has {linear.k}: calibrate again"
        )
    if channel.unseen:
        return ChannelRange(np.zeros_like(channel.low), np.zeros_like(channel.high))
    if not (np.isfinite(channel.low).all() and np.isfinite(channel.high).all()):
        raise FptqError(f"the statistics hold NaN or infinity for the input of {linear.name}")
    return channel


def site_scale(site: FoldSite, ranges: Mapping[str, ChannelRange]) -> np.ndarray:
    """The LAE smoothing scale s [K] of a site, from the ranges of all linears that read it."""
    merged = ranges[site.linears[0]]
    for name in site.linears[1:]:
        merged = merged.merged(ranges[name])
    return equalization_scale(merged.absmax)


def _entry(
    linear: Linear,
    ranges: Mapping[str, ChannelRange],
    site: FoldSite | str,
    kept: str | None,
    config: Config,
    *,
    unseen: bool,
) -> LinearPlan:
    channel = ranges[linear.name]
    largest = channel.tensor_absmax
    entry = LinearPlan(
        name=linear.name,
        path=linear.path,
        k=linear.k,
        n=linear.n,
        range=largest,
        scheme=PER_TOKEN,
        reason="",
        fold_site=None,
        input_scale=None,
        block_size=config.block_size,
        symmetric=config.symmetric,
    )
    if kept is not None:
        return replace(entry, scheme=SKIP, reason=kept)
    if config.activation_scheme == "weight_only":
        reason = UNSEEN if unseen else "--activation-scheme weight_only"
        return replace(entry, scheme=WEIGHT_ONLY, reason=reason)
    if unseen:  # by a router: a scale for all tokens is not to be had
        return with_scheme(entry, static=False, largest=0.0, reason=UNSEEN)
    massive = loses_tokens(channel.sizes, largest)
    if config.activation_scheme in ("static", "per_token"):
        wanted, reason = (
            config.activation_scheme == "static",
            f"--activation-scheme {config.activation_scheme}",
        )
    elif not asks_for_lae(largest, config):
        wanted, reason = by_thresholds(largest, config, None)
    else:
        smoothing = _lae_scale(linear, site, ranges)
        declined = smoothing if isinstance(smoothing, Declined) else None
        static, reason = by_thresholds(largest, config, declined)
        if isinstance(site, FoldSite) and not isinstance(smoothing, Declined):
            entry = replace(entry, fold_site=site.name, equalization=LAE)
            largest = equalized_absmax(channel.absmax, smoothing)
        return with_scheme(entry, static=static, largest=largest, reason=reason)
    return with_scheme(
        entry,
        static=wanted and not massive,
        largest=largest,
        reason=reason,
        left_out=ONE_SCALE if wanted and massive else "",
    )


def _lae_scale(
    linear: Linear, site: FoldSite | str, ranges: Mapping[str, ChannelRange]
) -> NDArray[np.float32] | Declined:
    """LAE's smoothing scales [K] of a linear's input, or why they cannot be folded."""
    if isinstance(site, str):
        return Declined(linear.name, site)
    smoothing = site_scale(site, ranges)
    problem = fold_overflow(site, smoothing)
    return Declined(linear.name, problem) if problem else smoothing


def massive_notes(plan: Plan) -> tuple[str, ...]:
    """A sentence for users where the plan leaves out what the options ask for; or none."""
    rows = [entry for entry in plan.linears if MASSIVE in entry.reason]
    if not rows:
        return ()
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    what = " or ".join(dict.fromkeys(row.reason.split(f"{MASSIVE}, so ")[1] for row in rows))
    return (
        f"in the input of {rows[0].path}{more} {MASSIVE}: {what} where it would round the others "
        f"away, and each token gets its own scale",
    )


def fold_overflow(site: FoldSite, scale: np.ndarray) -> str:
    """Why a gain divided by s does not fit its type (float16 overflows at 65504), or ''."""
    for operand in site.operands:
        dtype = operand.constant.dtype
        with np.errstate(over="ignore"):
            divided = (operand.constant.load().astype(np.float32) / scale).astype(dtype.numpy())
        if not np.isfinite(divided.astype(np.float32)).all():
            return f"{operand.constant.name} divided by s overflows {dtype.name}"
    return ""
