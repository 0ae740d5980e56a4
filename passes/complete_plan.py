"""Make a replayed plan whole: fold sites and missing static scales follow from the statistics.

A person edits `scheme`, `equalization` or `input_scale`; this pass works out what that implies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.linear_sites import LinearSite, find_linear_sites
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.numerics.int8 import FLOAT32_TINY, static_scale
from fptq_onnx.numerics.log_equalization import equalized_absmax
from fptq_onnx.numerics.smoothing_scales import LAE, NONE, parse_equalization
from fptq_onnx.passes.choose_schemes import fold_overflow, range_of, site_scale
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.plan import LAE_STATIC, STATIC, LinearPlan, Plan

# A given scale that clips below this share of the largest value seen is worth a warning: it is
# what is left behind when lae_static is edited to static.
_SUSPICIOUS_CLIP = 0.5
_FLOAT32_MAX = float(np.finfo(np.float32).max)  # the scale is stored as float32


def complete_plan(
    plan: Plan, scan: LinearScan, stats: ActivationStats
) -> tuple[Plan, tuple[str, ...]]:
    """Fill in what an edited plan leaves open.

    Args:
        plan: read from a file.
        scan: the linears of the model.
        stats: channel ranges of all their inputs.

    Returns:
        The plan with fold_site and input_scale consistent, and warnings for the user.

    Raises:
        FptqError: the plan does not fit the model, asks for a fold that is impossible, or holds an
            input_scale that is not a positive number.
    """
    plan.check_against(scan)
    sites = find_fold_sites(scan.linears)
    columns = {
        name: site
        for name, site in find_linear_sites(scan.linears).items()
        if not isinstance(sites[name], FoldSite)  # a gain is to be had as well: it comes first
    }
    ranges = {linear.name: range_of(linear, stats) for linear in scan.linears}
    planned = plan.by_name()
    # Graph order, whatever the file's: emitters put what linears share before the first of them.
    in_order = tuple(planned[linear.name] for linear in scan.linears)
    for entry in in_order:
        site = sites[entry.name]
        if entry.scheme != LAE_STATIC or entry.name in columns:
            continue
        problem = site if isinstance(site, str) else fold_overflow(site, site_scale(site, ranges))
        if problem:
            raise FptqError(
                f"the plan equalizes the input of {entry.name}, but {problem}: use per_token there"
            )
    marked = _share_folds(in_order, sites, columns)
    entries: list[LinearPlan] = []
    warnings: list[str] = []
    for entry in marked:
        if entry.scheme not in (STATIC, LAE_STATIC):
            entries.append(replace(entry, input_scale=None))
            continue
        site = sites[entry.name]
        known = entry.equalization in (NONE, LAE) and (
            entry.fold_site is None or isinstance(site, FoldSite)
        )
        absmax = ranges[entry.name].tensor_absmax
        if entry.fold_site is not None and isinstance(site, FoldSite):
            absmax = equalized_absmax(ranges[entry.name].absmax, site_scale(site, ranges))
        scale = entry.input_scale
        if scale is None:
            if not known:  # its smoothing scales depend on more than ranges: found later
                entries.append(entry)
                continue
            scale = float(static_scale(absmax))
        if not float(FLOAT32_TINY) <= scale <= _FLOAT32_MAX:  # false for NaN too
            raise FptqError(f"the plan gives {entry.name} the input_scale {scale}: use null")
        if known and scale * 127 < _SUSPICIOUS_CLIP * absmax:
            warnings.append(
                f"{entry.name}: input_scale {scale:.4g} clips at {scale * 127:.4g}, calibration "
                f"saw {absmax:.4g}; set input_scale to null after changing a scheme"
            )
        entries.append(replace(entry, input_scale=scale))
    return replace(plan, linears=tuple(entries)), tuple(warnings)


def _share_folds(
    entries: tuple[LinearPlan, ...],
    sites: Mapping[str, FoldSite | str],
    columns: Mapping[str, LinearSite],
) -> tuple[LinearPlan, ...]:
    """Linears that read one value have one equalization, and its site; lae_static implies LAE."""
    candidates: dict[str, str] = {}
    for entry in entries:
        equalization = LAE if entry.scheme == LAE_STATIC else entry.equalization
        try:
            parse_equalization(equalization)
        except ValueError as error:
            raise FptqError(f"the plan gives {entry.name} {error}") from error
        if equalization == NONE:
            continue
        site = columns.get(entry.name, sites[entry.name])
        if isinstance(site, str):
            raise FptqError(
                f"the plan equalizes the input of {entry.name}, but {site}: use equalization "
                f"'none' there"
            )
        for name in site.linears:
            if candidates.setdefault(name, equalization) != equalization:
                raise FptqError(
                    f"the plan gives {name} and {entry.name}, which read the same value, the "
                    f"equalizations {candidates[name]!r} and {equalization!r}: give them one"
                )
    found = []
    for entry in entries:
        site = columns.get(entry.name, sites[entry.name])
        equalization = candidates.get(entry.name, NONE)
        fold_site = None if equalization == NONE or isinstance(site, str) else site.name
        found.append(replace(entry, fold_site=fold_site, equalization=equalization))
    return tuple(found)
