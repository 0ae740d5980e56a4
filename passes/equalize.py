"""Fold the equalization of activations into the norms before them: the scales of a plan.

Which sites, and with what scales, follows from the plan and the channel ranges; what is done to the
graph is in fold_into_producers.py.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.norm_sites import find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.smoothing_scales import LAE
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes.choose_schemes import range_of, site_scale
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.plan import LAE_STATIC, Plan


def equalize(model: ir.Model, plan: Plan, stats: ActivationStats) -> PassResult:
    """Fold every site the plan names, in place.

    Args:
        model: changed in place; the arrays it was loaded from are not.
        plan: entries with equalization lae say which sites to fold.
        stats: the channel ranges s is computed from.

    Returns:
        Names of the folded norms.

    Raises:
        FptqError: an entry asks for it where no fold is possible, with the reason.
    """
    scan = find_linears(model)
    linears = scan.by_name()
    sites = find_fold_sites(scan.linears)
    scales: dict[str, NDArray[np.float32]] = {}
    for entry in plan.linears:
        if entry.equalization != LAE and entry.scheme != LAE_STATIC:
            continue
        site = sites[entry.name]
        if isinstance(site, str):
            raise FptqError(
                f"the plan equalizes the input of {entry.name}, but {site}: use per_token there"
            )
        if site.name not in scales:
            ranges = {name: range_of(linears[name], stats) for name in site.linears}
            scales[site.name] = site_scale(site, ranges)
    return fold_into_producers(model, scales)
