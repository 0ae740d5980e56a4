"""Fold the equalization of activations into the norms before them.

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
from fptq_onnx.graph.constants import Array, Constant
from fptq_onnx.graph.folding.linear_sites import LinearSite, find_linear_sites
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import Linear, find_linears

_SUFFIX = "_equalized"


def fold_into_producers(
    model: ir.Model, scales: Mapping[str, NDArray[np.float32]]
) -> tuple[str, ...]:
    """Fold given smoothing scales, in place.

    Args:
        model: changed in place; the arrays it was loaded from are not.
        scales: s [K] by the name of the norm, or of the linear whose columns take it.

    Returns:
        The names, norms first.

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
        _fold(norms[name], scales[name], linears)
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
    return tuple(done)


def _fold_columns(
    source: Linear,
    site: LinearSite,
    scale: NDArray[np.float32],
    linears: dict[str, Linear],
) -> None:
    """Divide columns and bias entries of one linear, multiply the rows of those after it."""
    smoothing_scales = site.smoothing_scales(scale)
    transposed = _is_transposed(source)
    _replace_constant(
        source.nodes[0],
        1,
        source.weight,
        _transposed_divided if transposed else _divided,
        smoothing_scales,
        transposed=transposed,
    )
    if source.bias is not None:
        node = source.nodes[-1]
        index = 2 if node.op_type.endswith("Gemm") else _bias_index(node, source)
        _replace_constant(node, index, source.bias, _divided, smoothing_scales)
    _multiply_rows(site.linears, scale, linears)


def _bias_index(add: ir.Node, linear: Linear) -> int:
    """Which input of the Add after a MatMul is the bias."""
    return 1 if add.inputs[0] is linear.nodes[0].outputs[0] else 0


def replace_weight(linear: Linear, w: ir.TensorProtocol) -> None:
    """Give a linear another weight [K, N], in place."""

    def other(array: Array, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        found = w.numpy().astype(np.float32)
        return np.ascontiguousarray(found.T) if transposed else found

    transposed = _is_transposed(linear)
    _replace_constant(
        linear.nodes[0], 1, linear.weight, other, np.ones(1, np.float32), transposed=transposed
    )


def _fold(site: FoldSite, scale: NDArray[np.float32], linears: dict[str, Linear]) -> None:
    for operand in site.operands:
        _replace_constant(operand.node, operand.index, operand.constant, _divided, scale)
    _multiply_rows(site.linears, scale, linears)


def _multiply_rows(
    names: tuple[str, ...], scale: NDArray[np.float32], linears: dict[str, Linear]
) -> None:
    for name in names:
        linear = linears[name]
        transposed = _is_transposed(linear)
        _replace_constant(
            linear.nodes[0],
            1,
            linear.weight,
            _transposed_rows_multiplied if transposed else _rows_multiplied,
            scale,
            transposed=transposed,
        )


def _replace_constant(
    node: ir.Node,
    index: int,
    constant: Constant,
    rescale: Callable[[Array, NDArray[np.float32]], NDArray[np.float32]],
    scale: NDArray[np.float32],
    *,
    transposed: bool = False,
) -> None:
    """Plug a rescaled copy of a constant into one input of one node; compute it when it is read."""
    # The index tells gain from bias where both are the same tensor.
    name = f"{constant.name}{_SUFFIX}_{node.name}_{index}"
    dtype = constant.dtype
    shape = ir.Shape(constant.shape[::-1] if transposed else constant.shape)

    def make() -> ir.TensorProtocol:
        return ir.Tensor(
            rescale(constant.load(), scale).astype(dtype.numpy(), copy=False), name=name
        )

    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise FptqError(f"{node.name} is inside a function, which cannot be changed")
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(make, dtype, shape, name=name)
    graph.register_initializer(value)
    node.replace_input_with(index, value)


def _is_transposed(linear: Linear) -> bool:
    """Whether the node itself stores its weight as [N, K] (Gemm with transB)."""
    attribute = linear.nodes[0].attributes.get("transB")
    return linear.nodes[0].op_type == "Gemm" and attribute is not None and bool(attribute.value)


def _divided(array: Array, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return array.astype(np.float32) / scale


def _transposed_divided(array: Array, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(_divided(array, scale).T)


def _rows_multiplied(array: Array, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.multiply(array, scale[:, None], dtype=np.float32)


def _transposed_rows_multiplied(array: Array, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(_rows_multiplied(array, scale).T)
