"""Decide how the input of each linear is quantized: as FPTQ does (arXiv 2308.15987, section 3).

    max|x| <= v0              static       one int8 scale for the tensor
    v0 < max|x| <= v1         lae_static   equalize, then one int8 scale; needs a fold site
    max|x| > v1, or no site   per_token    one int8 scale per row, found at run time
    matched by --ignore       skip         left in float
    a router, or a gate       skip         unless --int8-layers or --quantize-routers asks for it

A static scale that would round most tokens away, since a few are far larger, is not taken: the
input is then per_token, whatever the activation scheme.

Sizes are decided per activation: linears that read the same value get the same scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.gates import find_gates
from fptq_onnx.graph.linears.linears import Linear, LinearScan
from fptq_onnx.graph.linears.shared_weights import decline_fixed, fixed_weights
from fptq_onnx.numerics.group_weights import PER_CHANNEL
from fptq_onnx.numerics.int8 import static_scale
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
    STATIC,
    STAYS,
    WEIGHT_ONLY,
    LinearPlan,
    Plan,
)

UNSEEN = "no token of the calibration samples reaches it"
MASSIVE = "a few tokens are far larger than the rest"
ONE_SCALE = "one scale for all tokens"
_SAME_FOR_ALL = {"static": STATIC, "per_token": PER_TOKEN, "weight_only": WEIGHT_ONLY}


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
        _entry(linear, ranges, sites[linear.name], kept.get(linear.name), config)
        if linear.name in kept or not stats.ranges[linear.x.name or ""].unseen
        else _unseen(linear, config)
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
) -> LinearPlan:
    absmax = ranges[linear.name].tensor_absmax
    entry = LinearPlan(
        name=linear.name,
        path=linear.path,
        k=linear.k,
        n=linear.n,
        range=absmax,
        scheme=PER_TOKEN,
        reason="",
        fold_site=None,
        input_scale=None,
        block_size=config.block_size,
        symmetric=config.symmetric,
    )
    if kept is not None:
        return replace(entry, scheme=SKIP, reason=kept)
    massive = loses_tokens(ranges[linear.name].sizes, absmax)
    left_out = f"; {MASSIVE}, so {ONE_SCALE} is left out"
    if config.activation_scheme in _SAME_FOR_ALL:
        same = _SAME_FOR_ALL[config.activation_scheme]
        reason = f"--activation-scheme {config.activation_scheme}"
        if same == STATIC and massive:
            return replace(entry, reason=f"{reason}{left_out}")
        static = float(static_scale(absmax)) if same == STATIC else None
        return replace(entry, scheme=same, reason=reason, input_scale=static)
    if absmax <= config.v0 and massive:
        return replace(entry, reason=f"range {absmax:.4g} <= v0 = {config.v0:g}{left_out}")
    if absmax <= config.v0:
        return replace(
            entry,
            scheme=STATIC,
            reason=f"range {absmax:.4g} <= v0 = {config.v0:g}",
            input_scale=float(static_scale(absmax)),
        )
    if absmax > config.v1:
        return replace(entry, reason=f"range {absmax:.4g} > v1 = {config.v1:g}")
    between = f"v0 = {config.v0:g} < range {absmax:.4g} <= v1 = {config.v1:g}"
    if isinstance(site, str):
        return replace(entry, reason=f"{between}, but it cannot be equalized: {site}")
    scale = site_scale(site, ranges)
    problem = fold_overflow(site, scale)
    if problem:
        return replace(entry, reason=f"{between}, but it cannot be equalized: {problem}")
    return replace(
        entry,
        scheme=LAE_STATIC,
        reason=between,
        fold_site=site.name,
        equalization=LAE,
        input_scale=float(static_scale(equalized_absmax(ranges[linear.name].absmax, scale))),
    )


def _unseen(linear: Linear, config: Config) -> LinearPlan:
    """Of a linear that a router sent nothing: a scale for all tokens is not to be had."""
    scheme = WEIGHT_ONLY if config.activation_scheme == "weight_only" else PER_TOKEN
    return LinearPlan(
        linear.name, linear.path, linear.k, linear.n, range=0.0, scheme=scheme, reason=UNSEEN,
        fold_site=None, input_scale=None, block_size=config.block_size,
        symmetric=config.symmetric,
    )  # fmt: skip


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
