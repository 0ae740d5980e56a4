"""Target `matmulnbits`: com.microsoft::MatMulNBits, which any ONNX Runtime runs without us.

    MatMul(x, W)  ->  MatMulNBits(x, blocks, scales, zero_points?)      accuracy_level 4

accuracy_level 4 makes ONNX Runtime quantize activations to int8 itself, per row and block, so the
plan's static and per-token schemes do not apply; the folded equalization does. Weight-only linears
(W4A16) get accuracy_level 1: activations stay in float.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.graph.op_domains import MSFT_DOMAIN
from fptq_onnx.numerics.group_weights import PER_CHANNEL, GroupWeights, group_count, group_length
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import (
    current_input,
    lazy_initializer,
    replace_linear,
    weight_initializer,
)
from fptq_onnx.scheme.plan import FLOAT, WEIGHT_ONLY, LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

INT8_ACTIVATIONS = 4
FLOAT_ACTIVATIONS = 1
# MatMulNBits wants power-of-two blocks; a per-channel scale is written once per block of this size,
# which is the same arithmetic.
_BLOCK_FOR_PER_CHANNEL = 256


def emit_matmul_nbits(model: ir.Model, plan: Plan, store: WeightStore) -> PassResult:
    """Replace every quantized linear by MatMulNBits, in place; a bias stays a separate Add.

    Args:
        model: the equalized model.
        plan: which linears are quantized, and their groups.
        store: the quantized weights by linear name; read again when the model is written.
    """
    linears = find_linears(model).by_name()
    quantized = [entry for entry in plan.linears if entry.scheme != FLOAT]
    for entry in quantized:
        _emit(model.graph, linears[entry.name], entry, store)
    model.graph.opset_imports[MSFT_DOMAIN] = 1
    common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(quantized))


def _emit(graph: ir.Graph, linear: Linear, entry: LinearPlan, store: WeightStore) -> None:
    bias = linear.bias if len(linear.nodes) == 1 else None  # Gemm's; a MatMul's stays an Add
    node = matmul_nbits_node(
        graph,
        current_input(linear),
        store.first(entry.name),
        lambda: store.get(entry.name),
        k=linear.k,
        n=linear.n,
        bits=entry.weight_bits,
        block_size=entry.block_size,
        symmetric=entry.symmetric,
        dtype=linear.weight.dtype,
        accuracy_level=FLOAT_ACTIVATIONS if entry.scheme == WEIGHT_ONLY else INT8_ACTIVATIONS,
    )
    if bias is not None:
        value = lazy_initializer(graph, f"{entry.name}.bias", bias.dtype, (linear.n,), bias.load)
        node.resize_inputs(6)
        node.replace_input_with(5, value)
    replace_linear(linear, node, keep_bias=bias is None)


def matmul_nbits_node(
    graph: ir.Graph,
    x: ir.Value,
    name: str,
    get: Callable[[], GroupWeights],
    *,
    k: int,
    n: int,
    bits: int,
    block_size: int,
    symmetric: bool,
    dtype: ir.DataType,
    accuracy_level: int = INT8_ACTIVATIONS,
) -> ir.Node:
    """A MatMulNBits node [.., K] -> [.., N], not yet in the graph; its initializers are.

    Args:
        graph: receives `name`.W4 or .W8, .scales and .zero_points.
        x: the activation.
        name: of the linear, or of the first with the same weight.
        get: reads the weights; called when the model is written.
        k: input channels.
        n: output channels.
        bits: of a code, 4 or 8.
        block_size: of the weights; -1 for one scale per column.
        symmetric: the weights have no zero points.
        dtype: of the activation, which the scales must have too.
        accuracy_level: INT8_ACTIVATIONS or FLOAT_ACTIVATIONS.
    """
    block = _BLOCK_FOR_PER_CHANNEL if block_size == PER_CHANNEL else block_size
    blocks = group_count(k, block)
    inputs: list[ir.Value | None] = [
        x,
        weight_initializer(
            graph,
            f"{name}.W{bits}",
            ir.DataType.UINT8,
            (n, blocks, block * bits // 8),
            lambda: pack_blocks(get(), block),
        ),
        weight_initializer(
            graph,
            f"{name}.scales",
            dtype,
            (n, blocks),
            lambda: _by_column(_scales(get()), blocks).astype(dtype.numpy()),
        ),
    ]
    if not symmetric:
        inputs.append(
            weight_initializer(
                graph,
                f"{name}.zero_points",
                ir.DataType.UINT8,
                (n, -(-blocks * bits // 8)),
                lambda: _pack_zero_points(get(), blocks),
            )
        )
    attributes = {
        "K": k,
        "N": n,
        "bits": bits,
        "block_size": block,
        "accuracy_level": accuracy_level,
    }
    return ir.node("MatMulNBits", inputs, attributes, domain=MSFT_DOMAIN)


def pack_blocks(weights: GroupWeights, block: int) -> NDArray[np.uint8]:
    """Codes [K, N] -> uint8 [N, blocks, block * bits / 8], low nibble first along K.

    Channels past K hold the zero point's code, so that they stand for 0.
    """
    k, n = weights.codes.shape
    blocks = group_count(k, block)
    padded = np.full((n, blocks * block), weights.middle, np.uint8)
    padded[:, :k] = weights.codes.T
    if weights.zero_points is not None and k < blocks * block:
        padded[:, k:] = weights.zero_points[-1][:, None]
    if weights.bits == 8:
        return padded.reshape(n, blocks, block)
    pairs = padded.reshape(n, blocks, block // 2, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).astype(np.uint8)


def _scales(weights: GroupWeights) -> NDArray[np.float32]:
    """The scales [G, N], 0 for groups that are all zeros.

    ONNX Runtime sums code * x and takes zero_point * sum(x) off in float: of a group of zeros,
    whose scale could be any, that left 1e-5 of it.
    """
    k = len(weights.codes)
    starts = np.arange(0, k, group_length(k, weights.block_size))
    low, high = (f.reduceat(weights.codes, starts, axis=0) for f in (np.minimum, np.maximum))
    zero = weights.middle if weights.zero_points is None else weights.zero_points
    return np.where((low == zero) & (high == zero), np.float32(0), weights.scales)


def _by_column(values: NDArray[np.generic], blocks: int) -> NDArray[np.generic]:
    """Group values [G, N] -> [N, blocks]; a single group is repeated."""
    repeated = np.repeat(values, blocks, axis=0) if values.shape[0] == 1 else values
    return np.ascontiguousarray(repeated.T)


def _pack_zero_points(weights: GroupWeights, blocks: int) -> NDArray[np.uint8]:
    assert weights.zero_points is not None  # the plan says asymmetric, and so was it quantized
    columns = _by_column(weights.zero_points, blocks).astype(np.uint8)
    if weights.bits == 8:
        return columns
    if blocks % 2:
        columns = np.pad(columns, ((0, 0), (0, 1)))
    return (columns[:, 0::2] | (columns[:, 1::2] << 4)).astype(np.uint8)
