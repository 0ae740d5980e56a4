"""Gated MLPs in the variants of exporters: x -> n -> gate, up -> product -> down."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from support.tiny_graphs import build, weight

K, M, N = 6, 8, 5  # hidden size, channels of the product, outputs

_IN = "n = Tanh(x) g = MatMul(n, Wg) s = Sigmoid(g) a = Mul(g, s)"

# Name -> text. `up` is the linear that takes the fold, `down` reads the product.
FOLDABLE = {
    "llama": f"{_IN} up = MatMul(n, Wu) p = Mul(a, up) down = MatMul(p, Wd)",
    "up on the left": f"{_IN} up = MatMul(n, Wu) p = Mul(up, a) down = MatMul(p, Wd)",
    "biases": f"{_IN} up = MatMul(n, Wu) u = Add(up, b) p = Mul(a, u) down = MatMul(p, Wd)",
    "bias first": f"{_IN} up = MatMul(n, Wu) u = Add(b, up) p = Mul(a, u) down = MatMul(p, Wd)",
    "a row for a bias": f"{_IN} up = MatMul(n, Wu) u = Add(up, b1) p = Mul(a, u)"
    " down = MatMul(p, Wd)",
    "Gemm": f"{_IN} up = Gemm(n, Wu, b) p = Mul(a, up) down = Gemm(p, Wd, c)",
    "Gemm transB": f"{_IN} up = Gemm<transB = 1>(n, Wut, b) p = Mul(a, up)"
    " down = Gemm<transB = 1>(p, Wdt, c)",
    "Gemm with a bias of a row": f"{_IN} up = Gemm<transB = 1>(n, Wut, b1) p = Mul(a, up)"
    " down = Gemm(p, Wd)",
    "Gemm with one number for a bias": f"{_IN} up = Gemm(n, Wu, b0) p = Mul(a, up)"
    " down = Gemm(p, Wd, b0)",
    "Transpose": f"{_IN} wt = Transpose<perm = [1, 0]>(Wut) up = MatMul(n, wt) p = Mul(a, up)"
    " down = MatMul(p, Wd)",
    "casts": f"{_IN} up = MatMul(n, Wu) uu = Cast<to = 1>(up) p = Mul(a, uu) q = Identity(p)"
    " down = MatMul(q, Wd)",
    "rows back and forth": f"{_IN} up = MatMul(n, Wu) r = Reshape(up, by_rows)"
    " ar = Reshape(a, by_rows) p = Mul(ar, r) q = Reshape(p, by_rows) down = MatMul(q, Wd)",
    "two readers": f"{_IN} up = MatMul(n, Wu) p = Mul(a, up) down = MatMul(p, Wd)"
    " d2 = MatMul(p, We) z = Exp(d2)",
    "a gate per token": "n = Tanh(x) t = ReduceSum<keepdims = 1>(n, last) up = MatMul(n, Wu)"
    " p = Mul(up, t) down = MatMul(p, Wd)",
    "a gate of more tokens": f"{_IN} am = ReduceMax<keepdims = 1>(a, first) up = MatMul(n, Wu)"
    " p = Mul(am, up) down = MatMul(p, Wd)",
    "a gate that is a linear": "n = Tanh(x) g = MatMul(n, Wg) up = MatMul(n, Wu) p = Mul(g, up)"
    " down = MatMul(p, Wd)",
    "relu": "n = Tanh(x) up = MatMul(n, Wu) p = Relu(up) down = MatMul(p, Wd)",
    "relu after a bias": "n = Tanh(x) up = Gemm(n, Wu, b) p = Relu(up) q = Cast<to = 1>(p)"
    " down = Gemm(q, Wd, c)",
    "one weight of both": "n = Tanh(x) g = MatMul(n, Wu) s = Sigmoid(g) up = MatMul(n, Wu)"
    " p = Mul(s, up) down = MatMul(p, Wd)",
}

# Name -> text; the columns of `up` take the roots.
FOLDABLE_ROOTS = {
    "relu squared": "n = Tanh(x) up = Gemm(n, Wu, b) r = Relu(up) p = Mul(r, r)"
    " down = MatMul(p, Wd)",
    "relu to the power of two": "n = Tanh(x) up = MatMul(n, Wu) u = Cast<to = 1>(up) r = Relu(u)"
    " rr = Cast<to = 1>(r) p = Pow(rr, power2) down = MatMul(p, Wd)",
    "squared": "n = Tanh(x) up = MatMul(n, Wu) p = Mul(up, up) down = MatMul(p, Wd)",
}

_PARTS = "s = Sigmoid(g) a = Mul(g, s) p = Mul(a, u) down = MatMul(p, Wd)"
_SPLIT = "n = Tanh(x) both = MatMul(n, W2)"
_HALF = "sh = Shape(both) all = Gather(sh, last) more = Add(all, one) half = Div(more, two)"

# Name -> text; the columns of `both` that take the fold begin at M, but at 0 where up is first.
FOLDABLE_PARTS = {
    "split": f"{_SPLIT} g, u = Split<axis = -1, num_outputs = 2>(both) {_PARTS}",
    "sizes": f"{_SPLIT} g, u = Split<axis = -1>(both, halves) {_PARTS}",
    "up first": f"{_SPLIT} u, g = Split<axis = -1, num_outputs = 2>(both) {_PARTS}",
    "slices": f"{_SPLIT} g = Slice(both, begin, m, last) u = Slice(both, m, end, last) {_PARTS}",
    "counted slices": f"{_SPLIT} {_HALF} g = Slice(both, begin, half, last)"
    f" full = Mul(half, two) u = Slice(both, half, full, last) {_PARTS}",
    "counted with casts": f"{_SPLIT} {_HALF} g = Slice(both, begin, half, last)"
    f" sq = Squeeze(half) ca = Cast<to = 7>(sq) as = Unsqueeze(ca, begin) full = Mul(as, two)"
    f" u = Slice(both, as, full, last) {_PARTS}",
    "a cast": f"{_SPLIT} g, u_ = Split<axis = -1, num_outputs = 2>(both) u = Cast<to = 1>(u_)"
    f" {_PARTS}",
    "a bias": f"n = Tanh(x) both_ = MatMul(n, W2) both = Add(both_, b2)"
    f" g, u = Split<axis = -1, num_outputs = 2>(both) {_PARTS}",
    "a part that nothing else reads": f"{_IN} both = MatMul(n, W2) unused, u = Split<axis = -1,"
    " num_outputs = 2>(both) p = Mul(a, u) down = MatMul(p, Wd)",
}

NOT_FOLDABLE_PARTS = {
    "counted slices that overlap": f"{_SPLIT} {_HALF} over = Add(half, one)"
    f" g = Slice(both, one, over, last) full = Mul(half, two) u = Slice(both, half, full, last)"
    f" {_PARTS}",
    "counted from rows": f"{_SPLIT} {_HALF.replace('last', 'first')}"
    f" g = Slice(both, begin, half, last) full = Mul(half, two) u = Slice(both, half, full, last)"
    f" {_PARTS}",
    "counted from a smaller value": f"{_IN} both = MatMul(n, W2) few = MatMul(n, Wh)"
    f" {_HALF.replace('both', 'few')} after = Add(half, m) u = Slice(both, half, after, last)"
    " p = Mul(a, u) down = MatMul(p, Wd) z = Identity(few)",
    "counted from another value": f"{_SPLIT} e = Concat<axis = -1>(both, both)"
    f" {_HALF.replace('both', 'e')} h = Div(half, two) g = Slice(both, begin, h, last)"
    f" u = Slice(both, h, half, last) {_PARTS} z = Identity(e)",
    "relu cubed": "n = Tanh(x) up = MatMul(n, Wu) r = Relu(up) p = Pow(r, power3)"
    " down = MatMul(p, Wd)",
    "a squared relu feeds others": "n = Tanh(x) up = MatMul(n, Wu) r = Relu(up) p = Mul(r, r)"
    " down = MatMul(p, Wd) z = Exp(r)",
    "what is squared feeds others": "n = Tanh(x) up = MatMul(n, Wu) p = Mul(up, up)"
    " down = MatMul(p, Wd) z = Exp(up)",
    "a relu to be squared that is cast for others": "n = Tanh(x) up = MatMul(n, Wu) r = Relu(up)"
    " rr = Cast<to = 1>(r) p = Mul(rr, rr) down = MatMul(p, Wd) z = Exp(r)",
    "up feeds others": f"{_SPLIT} g, u = Split<axis = -1, num_outputs = 2>(both) {_PARTS}"
    " z = Exp(u)",
    "all feeds others": f"{_SPLIT} g, u = Split<axis = -1, num_outputs = 2>(both) {_PARTS}"
    " z = Exp(both)",
    "up squared": f"{_SPLIT} g, u = Split<axis = -1, num_outputs = 2>(both) p = Mul(u, u)"
    " down = MatMul(p, Wd) z = Exp(g)",
    "overlapping slices": f"{_SPLIT} g = Slice(both, one, m1, last) u = Slice(both, m, end, last)"
    f" {_PARTS}",
    "a function of up": f"{_SPLIT} g, u_ = Split<axis = -1, num_outputs = 2>(both) u = Relu(u_)"
    f" {_PARTS}",
    "rows": f"{_SPLIT} rows = Reshape(both, by_rows) pair = Reshape(rows, by_pairs)"
    f" g, u = Split<axis = 0, num_outputs = 2>(pair) {_PARTS}",
}

# Name -> text in which nothing may be folded in front of `down`.
NOT_FOLDABLE = {
    "squared through a cast": "n = Tanh(x) up = MatMul(n, Wu) uu = Cast<to = 1>(up)"
    " p = Mul(up, uu) down = MatMul(p, Wd)",
    "swish of itself": "n = Tanh(x) up = MatMul(n, Wu) s = Sigmoid(up) p = Mul(s, up)"
    " down = MatMul(p, Wd)",
    "a function of up": f"{_IN} up = MatMul(n, Wu) r = Relu(up) p = Mul(a, r) down = MatMul(p, Wd)",
    "rounded": f"{_IN} up = MatMul(n, Wu) i = Cast<to = 7>(up) f = Cast<to = 1>(i) p = Mul(a, f)"
    " down = MatMul(p, Wd)",
    "softplus": "n = Tanh(x) up = MatMul(n, Wu) p = Softplus(up) down = MatMul(p, Wd)",
    "relu feeds others": "n = Tanh(x) up = MatMul(n, Wu) p = Relu(up) down = MatMul(p, Wd)"
    " z = Exp(p)",
    "a sum": f"{_IN} up = MatMul(n, Wu) p = Add(a, up) down = MatMul(p, Wd)",
    "a quotient": f"{_IN} up = MatMul(n, Wu) p = Div(a, up) down = MatMul(p, Wd)",
    "a function after the product": f"{_IN} up = MatMul(n, Wu) p = Mul(a, up) r = Tanh(p)"
    " down = MatMul(r, Wd)",
    "up feeds others": f"{_IN} up = MatMul(n, Wu) p = Mul(a, up) down = MatMul(p, Wd) z = Exp(up)",
    "the product feeds others": f"{_IN} up = MatMul(n, Wu) p = Mul(a, up) down = MatMul(p, Wd)"
    " z = Exp(p)",
    "an outer product": "n = Tanh(x) g = MatMul(n, Wu) up = MatMul(n, Wu2)"
    " gu = Unsqueeze(g, minus2) uu = Unsqueeze(up, last) p = Mul(gu, uu) down = MatMul(p, Wd)",
    "channels in the middle": "n = Tanh(x) g = MatMul(n, Wh) up = MatMul(n, Wu)"
    " gr = Reshape(g, heads_g) ur = Reshape(up, heads_u) p = Mul(gr, ur) q = Reshape(p, by_rows)"
    " down = MatMul(q, Wd)",
    "an up that broadcasts": f"{_IN} up = MatMul(n, Wone) p = Mul(a, up)"
    " down = MatMul(p, Wd)",
}  # fmt: skip


def gated_model(
    rng: np.random.Generator, text: str, *, dtype: str = "float32", outputs: str = ""
) -> ir.Model:
    """A model of one of these texts over `x` [A, 6]; outputs down and z where there is one."""
    shapes: Mapping[str, tuple[int, ...]] = {
        "Wg": (K, M), "Wu": (K, M), "Wu2": (K, M), "Wut": (M, K), "Wd": (M, N), "Wdt": (N, M),
        "W2": (K, 2 * M), "b2": (2 * M,), "We": (M, N), "Wone": (K, 1), "Wh": (K, 2), "b": (M,),
        "b1": (1, M), "b0": (1,), "c": (N,),
    }  # fmt: skip
    arrays: dict[str, NDArray[np.generic]] = {
        name: weight(rng, *shape, dtype=dtype) for name, shape in shapes.items()
    }
    arrays |= {
        "by_rows": np.array([-1, M]), "last": np.array([-1]), "minus2": np.array([-2]),
        "halves": np.array([M, M]), "begin": np.array([0]), "m": np.array([M]),
        "end": np.array([1 << 40]), "one": np.array([1]),
        "power2": np.array(2, np.float32), "power3": np.array([3], np.float32),
        "two": np.array([2]),
        "m1": np.array([M + 1]), "by_pairs": np.array([-1, M]),
        "first": np.array([0]), "heads_g": np.array([-1, 2, 1]), "heads_u": np.array([-1, 2, 4]),
    }  # fmt: skip
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in arrays.items() if name in tokens}
    kind = "float" if dtype == "float32" else dtype
    names = outputs or ("down z" if " z = " in text else "down")
    declared = ", ".join(f"{kind} {name}" for name in names.split())
    return build(f"g_ ({kind}[A, {K}] x) => ({declared}) {{ {text} }}", used)
