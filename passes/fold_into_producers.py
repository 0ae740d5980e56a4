"""Fold smoothing scales s into what makes an activation, and undo them in what reads it.

    gain, bias  ->  gain / s, bias / s           W (each reader)  ->  diag(s) W
    W, b of up  ->  W diag(1/s), b / s           (into a linear before an elementwise product)

The float model computes the same function; no node is added. Weights are only multiplied when they
are read, so no second copy of the model exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import Array
from fptq_onnx.graph.folding.linear_sites import LinearSite, find_linear_sites
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.change_weight import change_constant, change_weight
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.passes._contract import PassResult

Scale = NDArray[np.float32]


def fold_into_producers(model: ir.Model, scales: Mapping[str, Scale]) -> PassResult:
    """Fold given smoothing scales, in place.

    Args:
        model: changed in place; the arrays it was loaded from are not.
        scales: s [K] by the name of the norm, or of the linear whose columns take it.

    Returns:
        The names of the norms and linears, norms first.

    Raises:
        FptqError: a name is neither a norm nor a linear that can take a fold.
    """
    scan = find_linears(model)
    linears = scan.by_name()
    norms = {
        site.name: site
        for site in find_fold_sites(scan.linears).values()
        if isinstance(site, FoldSite)
    }
    done = [name for name in scales if name in norms]
    for name in done:
        for operand in norms[name].operands:
            change_constant(operand.node, operand.index, operand.constant, _divided(scales[name]))
        _multiply_rows(norms[name].linears, scales[name], linears)
    for name in (name for name in scales if name not in norms):
        scan = find_linears(model)  # anew each time: weights become other values
        columns = {site.name: site for site in find_linear_sites(scan.linears).values()}
        if name not in columns:
            raise FptqError(f"the plan folds an equalization into {name!r}, which cannot take one")
        linears = scan.by_name()
        _fold_columns(linears[name], columns[name], scales[name], linears)
        done.append(name)
    if done:
        common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(done), names=tuple(done))


def _fold_columns(
    source: Linear, site: LinearSite, scale: Scale, linears: Mapping[str, Linear]
) -> None:
    """Divide columns and bias entries of one linear, multiply the rows of those after it."""
    divided = _divided(site.smoothing_scales(scale))
    change_weight(source, divided)
    if source.bias is not None:
        node = source.nodes[-1]
        index = 2 if node.op_type.endswith("Gemm") else _bias_index(node, source)
        change_constant(node, index, source.bias, divided)
    _multiply_rows(site.linears, scale, linears)


def _bias_index(add: ir.Node, linear: Linear) -> int:
    """Which input of the Add after a MatMul is the bias."""
    return 1 if add.inputs[0] is linear.nodes[0].outputs[0] else 0


def _multiply_rows(names: tuple[str, ...], scale: Scale, linears: Mapping[str, Linear]) -> None:
    for name in names:
        change_weight(
            linears[name], lambda array: np.multiply(array, scale[:, None], dtype=np.float32)
        )


def _divided(scale: Scale) -> Callable[[Array], Array]:
    return lambda array: array.astype(np.float32) / scale
