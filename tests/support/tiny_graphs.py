"""Tiny graphs written as ONNX text: built, run by ONNX Runtime, compared with derived bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.graph.check_graph import graph_problems
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.runtime import native_library as runtime
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange

FLOAT32_EPS = 2.0**-23
FLOAT16_EPS = 2.0**-10

Arrays = Mapping[str, NDArray[np.generic]]


def build(
    body: str,
    weights: Arrays | None = None,
    *,
    opset: int = 18,
    microsoft: bool = False,
    ir_version: int = 8,
    names: bool = True,
) -> ir.Model:
    """A model from `name (inputs) => (outputs) { nodes }`, its weights given as arrays.

    Nodes get the name of their first output, unless `names` is False.
    """
    domains = f'"" : {opset}' + (', "com.microsoft" : 1' if microsoft else "")
    tensors = [tensor_of(name, array) for name, array in (weights or {}).items()]
    text = f"<ir_version: {ir_version}, opset_import: [{domains}]>\n{body}"
    model = ir.from_onnx_text(text, initializers=tensors)
    for node in model.graph.all_nodes() if names else ():
        node.name = node.outputs[0].name
    normalize(model)
    return model


def raw(body: str, weights: Arrays, opset: int = 18) -> ir.Model:
    """As `build`, without the normalization that calls the pass."""
    tensors = [tensor_of(name, array) for name, array in weights.items()]
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}',
        initializers=tensors,
    )
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    return model


def tensor_of(name: str, array: NDArray[np.generic]) -> ir.Tensor[NDArray[np.generic]]:
    """An ir tensor of an array, bfloat16 and int4 included."""
    return ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype), name=name)


def run(
    model: ir.Model, feeds: Arrays, *, optimize: bool = False
) -> dict[str, NDArray[np.generic]]:
    """Outputs by name. Unoptimized by default, so that every node runs as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if "fptq" in model.opset_imports:
        runtime.register(options)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    problems = [found for found in graph_problems(model) if found.kind != "order"]
    assert not problems
    serialized = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def op_counts(model: ir.Model) -> dict[str, int]:
    """Number of nodes per op type, subgraphs included."""
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def weight(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> NDArray[np.generic]:
    """Normal random numbers of standard deviation 0.5."""
    kinds = {"bfloat16": ml_dtypes.bfloat16}
    return (rng.standard_normal(shape) * 0.5).astype(kinds.get(dtype, dtype))


def product_bound(
    x: NDArray[np.generic], w: NDArray[np.generic], *, eps: float = FLOAT32_EPS, extra: int = 2
) -> NDArray[np.float64]:
    """How far a float dot product over K terms may be from the exact one, per output element.

    Summing K products in any order with unit roundoff u = eps / 2 errs by at most
    gamma_K * sum|x||w|, gamma_K = K u / (1 - K u) <= K eps for K eps < 1 (Higham, section 3.1).
    `extra` more roundings: the bias, the final conversion.
    """
    k = w.shape[0]
    magnitude: NDArray[np.float64] = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64)
    bound: NDArray[np.float64] = (k + extra) * eps * magnitude
    return bound


def stats_of(
    model: ir.Model, absmax: Mapping[str, Sequence[float] | NDArray[np.floating]]
) -> ActivationStats:
    """Statistics with the given channel maxima; linear inputs not named get ones.

    Every other channel is negative, so that a reader of only `high` is found out.
    """
    ranges = {}
    for linear in find_linears(model).linears:
        name = linear.x.name or ""
        top = np.asarray(absmax.get(name, np.ones(linear.k)), np.float32)
        even = np.arange(len(top)) % 2 == 0
        ranges[name] = ChannelRange(
            np.where(even, -top / 2, -top).astype(np.float32),
            np.where(even, top, top / 2).astype(np.float32),
        )
    return ActivationStats(ranges, 1, "made up")
