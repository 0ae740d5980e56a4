"""Graphs with one linear in every variant, quantized, ready for an emitter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.numerics.group_weights import GroupWeights
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore
from support.planned import carried_out
from support.tiny_graphs import build, stats_of, weight

Emitter = Callable[[ir.Model, Plan, WeightStore], None]

# Name -> nodes that make `y` from `x` with W [K, N] or [N, K] and a bias b [N]
VARIANTS = {
    "matmul": "y = MatMul(x, W)",
    "matmul_bias": "p = MatMul(x, W) y = Add(p, b)",
    "bias_first": "p = MatMul(x, W) y = Add(b, p)",
    "transposed": "w = Transpose<perm = [1, 0]>(WT) y = MatMul(x, w)",
    "gemm": "y = Gemm(x, W, b)",
    "gemm_bias_of_one": "y = Gemm(x, W, b0)",
    "gemm_no_bias": "y = Gemm(x, W)",
    "gemm_trans_b": "y = Gemm<transB = 1>(x, WT, b)",
    "gemm_trans_b_no_bias": "y = Gemm<transB = 1>(x, WT)",
}


@dataclass(frozen=True)
class Quantized:
    """A model with quantized linears, and what an emitter needs of it."""

    model: ir.Model
    plan: Plan
    store: WeightStore

    @property
    def linear(self) -> Linear:
        """The first linear."""
        return find_linears(self.model).linears[0]

    def weights(self, index: int = 0) -> GroupWeights:
        """The int4 weights of a linear."""
        return self.store.get(self.plan.linears[index].name)

    def bias(self) -> NDArray[np.float32]:
        """The first linear's bias in float32, zeros when it has none."""
        bias = self.linear.bias
        return np.zeros(self.linear.n, np.float32) if bias is None else bias.load().astype("f4")

    def emitted(self, emit: Emitter) -> ir.Model:
        """A clone, emitted."""
        clone = self.model.clone()
        emit(clone, self.plan, self.store)
        return clone


def spelled(
    rng: np.random.Generator,
    variant: str,
    k: int,
    n: int,
    *,
    rank: int = 2,
    dtype: str = "float32",
    opset: int = 21,
) -> ir.Model:
    """A model that is one linear [.., k] -> [.., n]."""
    text = VARIANTS.get(variant, variant)
    shapes = {"W": (k, n), "WT": (n, k), "b": (n,), "b0": (1,)}
    weights = {
        name: weight(rng, *shape, dtype=dtype)
        for name, shape in shapes.items()
        if re.search(rf"\b{name}\b", text)
    }
    kind = "float" if dtype == "float32" else dtype
    dims = ", ".join("ABC"[: rank - 1])
    body = f"g ({kind}[{dims}, {k}] x) => ({kind}[{dims}, {n}] y) {{ {text} }}"
    return build(body, weights, opset=opset, ir_version=10)


def quantized(
    model: ir.Model,
    folder: Path,
    absmax: dict[str, NDArray[np.generic]] | None = None,
    schemes: Sequence[str] | None = None,
    **config: object,
) -> Quantized:
    """Plan with made-up statistics (maxima 1 unless given) and quantize into `folder`."""
    scan = find_linears(model)
    stats = stats_of(model, absmax or {})  # type: ignore[arg-type]  # of any float type
    plan = choose_schemes(scan, stats, Config(**config))  # type: ignore[arg-type]
    if schemes is not None:
        rows = [
            row if scheme == row.scheme else replace(row, scheme=scheme, input_scale=None)
            for row, scheme in zip(plan.linears, schemes, strict=True)
        ]
        plan = replace(plan, linears=tuple(rows))
    store = WeightStore(folder)
    carried_out(model, plan, stats, store)
    return Quantized(model, plan, store)


def activations(
    rng: np.random.Generator, shape: Sequence[int], scale: float
) -> NDArray[np.float32]:
    """Values that every way of dividing by `scale` rounds to the same int8 code.

    The fractional part of x / scale stays 0.1 away from a tie, far more than the few 2**-24 by
    which a division and a product with the reciprocal differ. Some values lie outside the range.
    """
    codes = rng.integers(-140, 141, tuple(shape))
    return ((codes + rng.uniform(-0.4, 0.4, tuple(shape))) * scale).astype(np.float32)
