"""Every way exporters write a norm, as text from `x` [A, S, 8] to `n`, with gain and bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from support.tiny_graphs import build, weight

K, N = 8, 6

Scalar = float | list[int] | list[list[int]]


@dataclass(frozen=True)
class Norm:
    """A norm as exporters write it.

    text: nodes that make `n` from `x` (and `skip`).
    gains: names of the constants [8] that scale the output, gain then bias.
    scalars: other constants the text needs.
    """

    text: str
    gains: tuple[str, ...]
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    opset: int = 18
    inputs: str = f"float[A, S, {K}] x"


_EPS: dict[str, Scalar] = {"eps": 1e-5}
_MEAN: dict[str, Scalar] = {"axes": [-1]}
_LAYER: dict[str, Scalar] = {**_EPS, **_MEAN, "two": 2.0}
_SKIP = f"float[A, S, {K}] x, float[A, S, {K}] skip"

NORMS = {
    "optimum RMSNorm": Norm(
        "f = Cast<to = 1>(x) p = Pow(f, two) m = ReduceMean(p, axes) a = Add(m, eps) s = Sqrt(a)"
        " d = Div(one, s) h = Mul(f, d) t = Cast<to = 1>(h) n = Mul(g, t)",
        ("g",),
        {**_LAYER, "one": 1.0},
    ),
    "optimum RMSNorm, opset 17": Norm(
        "f = Cast<to = 1>(x) p = Pow(f, two) m = ReduceMean<axes = [-1]>(p) a = Add(m, eps)"
        " s = Sqrt(a) d = Div(one, s) h = Mul(f, d) t = Cast<to = 1>(h) n = Mul(g, t)",
        ("g",),
        {**_EPS, "two": 2.0, "one": 1.0},
        opset=17,
    ),
    "dynamo RMSNorm": Norm(
        "p = Pow(x, two) m = ReduceMean(p, axes) a = Add(m, eps) s = Sqrt(a) d = Reciprocal(s)"
        " h = Mul(x, d) n = Mul(h, g)",
        ("g",),
        _LAYER,
        opset=20,
    ),
    "gemma 1 + w": Norm(
        "w1 = Add(g, one) p = Pow(x, two) m = ReduceMean(p, axes) a = Add(m, eps) s = Sqrt(a)"
        " d = Reciprocal(s) h = Mul(x, d) n = Mul(h, w1)",
        ("g",),
        {**_LAYER, "one": 1.0},
    ),
    "RMSNormalization": Norm(
        "n = RMSNormalization<axis = -1, epsilon = 1.0e-5>(x, g)", ("g",), opset=23
    ),
    "SimplifiedLayerNormalization": Norm(
        "n = SimplifiedLayerNormalization<axis = -1, epsilon = 1.0e-5>(x, g)", ("g",)
    ),
    "SkipSimplifiedLayerNormalization": Norm(
        "n, , , r = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 1.0e-5>(x, skip, g)",
        ("g",),
        inputs=_SKIP,
    ),
    "LayerNormalization": Norm("n = LayerNormalization(x, g, c)", ("g", "c")),
    "LayerNormalization without bias": Norm("n = LayerNormalization(x, g)", ("g",)),
    "SkipLayerNormalization": Norm(
        "n = com.microsoft.SkipLayerNormalization<epsilon = 1.0e-5>(x, skip, g, c)",
        ("g", "c"),
        inputs=_SKIP,
    ),
    "EmbedLayerNormalization": Norm(
        "i = ArgMax<axis = -1, keepdims = 0>(x) ids = Cast<to = 6>(i) table = Cast<to = 1>(eye)"
        " n, none = com.microsoft.EmbedLayerNormalization<epsilon = 1.0e-5>"
        "(ids, , table, table, , g, c)",
        ("g", "c"),
        {"eye": np.eye(K, dtype=int).tolist()},
    ),
    "decomposed LayerNorm": Norm(
        "m = ReduceMean(x, axes) e = Sub(x, m) p = Mul(e, e) va = ReduceMean(p, axes)"
        " a = Add(va, eps) s = Sqrt(a) h = Div(e, s) w = Mul(h, g) n = Add(w, c)",
        ("g", "c"),
        {**_EPS, **_MEAN},
    ),
}

# q and k read the norm directly (k with a bias), v through a Reshape and a Gemm.
_READERS = (
    "q = MatMul(n, Wq) u = MatMul(n, Wk) k = Add(u, bk)"
    " rows = Reshape(n, to_rows) v = Gemm<transB = 1>(rows, Wv, bv)"
)
_OUTPUTS = f"float[A, S, {N}] q, float[A, S, {N}] k, float[R, {N}] v"


def normed_graph(
    rng: np.random.Generator,
    norm: Norm,
    *,
    readers: str = _READERS,
    outputs: str = _OUTPUTS,
    inputs: str = "",
    more: Mapping[str, NDArray[np.generic]] | None = None,
) -> ir.Model:
    """A model: the norm, then linears q, k (node u) and v that read it."""
    weights: dict[str, NDArray[np.generic]] = {
        "Wq": weight(rng, K, N),
        "Wk": weight(rng, K, N),
        "bk": weight(rng, N),
        "Wv": weight(rng, N, K),
        "bv": weight(rng, N),
        "to_rows": np.array([-1, K], np.int64),
        **{name: (1 + weight(rng, K)).astype(np.float32) for name in norm.gains},
        **{
            name: np.array(value, np.int64 if isinstance(value, list) else np.float32)
            for name, value in norm.scalars.items()
        },
        **(more or {}),
    }
    text = f"{norm.text} {readers}"
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in weights.items() if name in tokens}
    return build(
        f"g_ ({norm.inputs}{inputs}) => ({outputs}) {{ {text} }}",
        used,
        opset=norm.opset,
        ir_version=11 if norm.opset >= 23 else 8,
        microsoft=True,
    )


def normed_feeds(rng: np.random.Generator, norm: Norm) -> dict[str, NDArray[np.generic]]:
    """Random inputs for `normed_graph`."""
    names = ["x"] + (["skip"] if norm.inputs == _SKIP else [])
    return {name: rng.standard_normal((2, 3, K)).astype(np.float32) for name in names}
