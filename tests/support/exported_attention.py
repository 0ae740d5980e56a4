"""Attention as exporters decompose it: q [b, s, 32], a cache of keys and values, a mask.

4 query heads of size 8, 2 heads of keys and values; the mask is added to the scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from support.tiny_graphs import build

HEADS, GROUPS, SIZE = 4, 2, 8

QUERIES = "q4 = Reshape(q, by_heads) qh = Transpose<perm = [0, 2, 1, 3]>(q4)"
CACHE = "kc = Concat<axis = 2>(past_k, k) vc = Concat<axis = 2>(past_v, v)"


def repeated(name: str) -> str:
    """torch's repeat_kv: the sizes come from the tensor itself."""
    n = name
    return (
        f"{n}_z = Shape({n}c) {n}_b = Gather({n}_z, i0) {n}_t = Gather({n}_z, i2)"
        f" {n}_w = Concat<axis = 0>({n}_b, two, two, {n}_t, eight)"
        f" {n}_n = Concat<axis = 0>({n}_b, four, {n}_t, eight)"
        f" {n}_u = Unsqueeze({n}c, at2) {n}_e = Expand({n}_u, {n}_w) {n}h = Reshape({n}_e, {n}_n)"
    )


KEYS_TURNED = "kt = Transpose<perm = [0, 1, 3, 2]>(kh)"
# dynamo: as one batch of matrices.
KEYS_TURNED_FLAT = (
    "kz = Shape(kh) kb = Slice(kz, i0, i2) kl = Slice(kz, i2, i3) kd = Slice(kz, i3, i4)"
    " kr = Concat<axis = 0>(minus, kl, kd) kf = Reshape(kh, kr)"
    " kg = Transpose<perm = [0, 2, 1]>(kf) ko = Concat<axis = 0>(kb, kd, kl)"
    " kt = Reshape(kg, ko)"
)
SCORES = "qs = Mul(qh, scale) ks = Mul(kt, scale) s0 = MatMul(qs, ks) s1 = Add(s0, mask)"
GUARDED = "p = Softmax<axis = -1>(s1) n = IsNaN(p) g = Where(n, zero, p) o = MatMul(g, vh)"
MERGED = "ot = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(ot, merged)"

ATTENTION = " ".join(
    [QUERIES, CACHE, repeated("k"), repeated("v"), KEYS_TURNED, SCORES, GUARDED, MERGED]
)

_CONSTANTS: Mapping[str, NDArray[np.generic]] = {
    "by_heads": np.array([0, 0, -1, SIZE]), "merged": np.array([0, 0, -1]),
    "i0": np.array([0]), "i2": np.array([2]), "i3": np.array([3]), "i4": np.array([4]),
    "at2": np.array([2]), "at1": np.array([1]), "minus": np.array([-1]),
    "two": np.array([GROUPS]), "four": np.array([HEADS]), "eight": np.array([SIZE]),
    "three": np.array([3]), "scale": np.array(0.59, np.float32), "zero": np.zeros(1, np.float32),
    "half": np.array(0.5, np.float32),
    "a_head": np.linspace(1, 2, HEADS, dtype=np.float32).reshape(HEADS, 1, 1),
}  # fmt: skip


def attention(text: str = ATTENTION, outputs: str = "float y") -> ir.Model:
    """A model of such a text; further outputs may be named."""
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    cache = f"float[b, {GROUPS}, p, {SIZE}]"
    new = f"float[b, {GROUPS}, s, {SIZE}]"
    inputs = (
        f"float[b, s, {HEADS * SIZE}] q, {new} k, {new} v, {cache} past_k, {cache} past_v,"
        " float[b, 1, s, t] mask"
    )
    used = {name: array for name, array in _CONSTANTS.items() if name in tokens}
    return build(f"g_ ({inputs}) => ({outputs}) {{ {text} }}", used)


def feeds(
    rng: np.random.Generator, *, batch: int = 2, new: int = 3, past: int = 5
) -> dict[str, NDArray[np.float32]]:
    """Inputs; the mask is causal, and in the last row the first 6 tokens are padding.

    With past 5 and 3 new tokens the first new token of that row attends to nothing.
    """
    total = past + new
    allowed = np.arange(total)[None] <= past + np.arange(new)[:, None]
    masks = np.repeat(allowed[None, None], batch, axis=0)
    masks[-1, :, :, :6] = False
    shapes = {
        "q": (batch, new, HEADS * SIZE), "k": (batch, GROUPS, new, SIZE),
        "v": (batch, GROUPS, new, SIZE), "past_k": (batch, GROUPS, past, SIZE),
        "past_v": (batch, GROUPS, past, SIZE),
    }  # fmt: skip
    made = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    return {**made, "mask": np.where(masks, 0, -np.inf).astype(np.float32)}
