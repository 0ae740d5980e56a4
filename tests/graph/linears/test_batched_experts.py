"""Routers over experts that are one product, and routers of several layers."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, run, weight

from fptq_onnx.graph.linears.gates import find_gates
from fptq_onnx.graph.linears.linears import find_linears

D, E, H = 16, 4, 24
SHAPES = {
    "R": (D, E), "EU": (E, D, H), "ED": (E, H, D), "EC": (E, D, 1), "K": (D, D, 3), "KD": (D, 1, 3),
    "U": (D, H), "Dn": (H, D), "V": (D, D), "G": (D, 1), "S": (D, 8), "S2": (8, 8), "RS": (8, E),
    "N8": (8,), "M": (D, 8), "Big": (D, 400), "RB": (400, E), "C": (D, D), "gain": (D,),
    "f": (1, 8, 1), "W2": (H, 8), "CB": (E, 1, D), "T3": (1, D, 8),
}  # fmt: skip
INTS = {
    "k1": [1], "k2": [2], "one": [1], "minus": [-1], "zero": [0], "tiles": [E, 1, 1], "axis1": [1],
}  # fmt: skip
ZEROS = "s = Shape(r) zeros = ConstantOfShape(s)"
# Scores of the best, zero elsewhere: w [T, E].
SCORES = f"{ZEROS} t, i = TopK(r, k1) p = Softmax(t) w = ScatterElements<axis = 1>(zeros, i, p)"
DENSE = "x3 = Unsqueeze(n, zero) h = MatMul(x3, EU) a = Relu(h) o = MatMul(a, ED)"  # [E, T, D]
SUM = "y = ReduceSum<keepdims = 0>(m, zero)"
BY_COLUMN = f"wt = Transpose<perm = [1, 0]>(w) w3 = Unsqueeze(wt, minus) m = Mul(o, w3) {SUM}"

ROUTERS = {
    "gpt-oss": f"{SCORES} {DENSE} {BY_COLUMN}",
    "copies of the tokens": f"{SCORES} {DENSE} {BY_COLUMN}".replace(
        "h = MatMul(x3, EU)", "xt = Tile(x3, tiles) h = MatMul(xt, EU)"
    ),
    "a bias of each expert": f"{SCORES} {DENSE} {BY_COLUMN}".replace(
        "o = MatMul(a, ED)", "ob = MatMul(a, ED) o = Add(ob, CB)"
    ),
    "scores by Where": f"p = Softmax(r) top = ReduceMax<keepdims = 1>(p, axis1)"
    f" on = GreaterOrEqual(p, top) none = Constant<value_float = 0.0>() w = Where(on, p, none)"
    f" {DENSE} {BY_COLUMN}",
    "outputs by Where": f"p = Softmax(r) top = ReduceMax<keepdims = 1>(p, axis1) {DENSE}"
    " on = GreaterOrEqual(p, top) ot = Transpose<perm = [1, 0]>(on) o3 = Unsqueeze(ot, minus)"
    f" none = Constant<value_float = 0.0>() m = Where(o3, o, none) {SUM}",
    "tokens weighed before": f"{SCORES} wt = Transpose<perm = [1, 0]>(w) w3 = Unsqueeze(wt, minus)"
    f" x3 = Unsqueeze(n, zero) xs = Mul(x3, w3) h = MatMul(xs, EU) a = Relu(h) m = MatMul(a, ED)"
    f" {SUM}",
    "Einsum with the scores": f'{SCORES} h = Einsum<equation = "td,edh->teh">(n, EU) a = Relu(h)'
    ' y = Einsum<equation = "teh,ehd,te->td">(a, ED, w)',
    "Einsum, then Mul": f'{SCORES} h = Einsum<equation = "td,edh->teh">(n, EU) a = Relu(h)'
    ' o = Einsum<equation = "teh,ehd->ted">(a, ED) w3 = Unsqueeze(w, minus) m = Mul(o, w3)'
    " y = ReduceSum<keepdims = 0>(m, one)",
    "the best of all outputs": f"i = ArgMax<axis = -1, keepdims = 1>(r) {DENSE}"
    " ot = Transpose<perm = [1, 0, 2]>(o) i3 = Unsqueeze(i, minus)"
    f" size = Constant<value_ints = [1, 1, {D}]>() ie = Expand(i3, size)"
    " c = GatherElements<axis = 1>(ot, ie) cs = Squeeze(c, one) y = Add(cs, n)",
    "experts in 8 bits": f"{SCORES} scale = Constant<value_float = 0.1>()"
    " qu = QuantizeLinear(EU, scale) du = DequantizeLinear(qu, scale)"
    " qd = QuantizeLinear(ED, scale) dd = DequantizeLinear(qd, scale)"
    f" x3 = Unsqueeze(n, zero) h = MatMul(x3, du) a = Relu(h) o = MatMul(a, dd) {BY_COLUMN}",
    "all weighed": f"w = Softmax(r) {DENSE} {BY_COLUMN}",
    "all weighed by a product": f"p = Softmax(r) {DENSE} ot = Transpose<perm = [1, 0, 2]>(o)"
    " w3 = Unsqueeze(p, one) m = MatMul(w3, ot) y = Squeeze(m, one)",
    "all weighed by Einsum": 'w = Softmax(r) h = Einsum<equation = "td,edh->teh">(n, EU)'
    ' a = Relu(h) y = Einsum<equation = "teh,ehd,te->td">(a, ED, w)',
    "a convolution or none": "nil = Constant<value_float = 0.0>() g = MatMul(n, G)"
    " on = Greater(g, nil) xt = Transpose<perm = [1, 0]>(n) x3 = Unsqueeze(xt, zero)"
    " c = Conv<pads = [1, 1]>(x3, K) cs = Squeeze(c, zero) ct = Transpose<perm = [1, 0]>(cs)"
    " y = Where(on, ct, n)",
}  # fmt: skip
NOT = {
    "a gate of the channels of an image": "v = MatMul(n, V) s = Sigmoid(v) s3 = Unsqueeze(s, minus)"
    " x3 = Unsqueeze(n, minus) x9 = Concat<axis = 2>(x3, x3, x3) c = Conv<pads = [1, 1]>(x9, K)"
    " m = Mul(c, s3) y = ReduceSum<keepdims = 0>(m, minus)",
    "one channel at a time": "v = MatMul(n, V) s = Sigmoid(v) s3 = Unsqueeze(s, minus)"
    " x3 = Unsqueeze(n, minus) x9 = Concat<axis = 2>(x3, x3, x3)"
    f" c = Conv<pads = [1, 1], group = {D}>(x9, KD) m = Mul(c, s3)"
    " y = ReduceSum<keepdims = 0>(m, minus)",
    "angles of positions": "v = MatMul(n, S) s = Sigmoid(v) t, i = TopK(s, k1)"
    " i3 = Unsqueeze(i, one) fi = Cast<to = 1>(i3) a = MatMul(f, fi) c = Cos(a)"
    " y = ReduceSum<keepdims = 0>(c, minus)",
    "the head after experts": f"{DENSE} m = Mul(o, o)"
    " ye = ReduceSum<keepdims = 0>(m, zero) l = MatMul(ye, C) y = ArgMax<axis = -1>(l)",
    "the best of its own values, times a kernel": "u = MatMul(n, V) t, i = TopK(u, k2)"
    " su = Shape(u) zu = ConstantOfShape(su) a = ScatterElements<axis = 1>(zu, i, t)"
    " a3 = Unsqueeze(a, zero) m = MatMul(a3, T3) y = Squeeze(m, zero)",
}  # fmt: skip


def model_of(text: str, rng: np.random.Generator, outputs: str) -> ir.Model:
    names = set(re.findall(r"\b\w+\b", text))
    weights = {name: weight(rng, *shape) for name, shape in SHAPES.items() if name in names}
    weights |= {name: np.array(v, np.int64) for name, v in INTS.items() if name in names}
    return build(f"g_ (float[T, {D}] x) => ({outputs}) {{ {text} }}", weights, opset=18)


def gates_of(text: str, rng: np.random.Generator, outputs: str = f"float[T, {D}] y") -> set[str]:
    """Names of what is found, after ONNX Runtime ran the graph."""
    model = model_of(f"n = LayerNormalization(x, gain) {text}", rng, outputs)
    run(model, {"x": rng.standard_normal((6, D)).astype(np.float32)})
    return set(find_gates(find_linears(model).linears))


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_is_found(rng: np.random.Generator, name: str) -> None:
    router = "" if name == "a convolution or none" else "r = MatMul(n, R) "
    assert gates_of(router + ROUTERS[name], rng) == {"r" if router else "g"}


@pytest.mark.parametrize("name", NOT)
def test_these_are_none(rng: np.random.Generator, name: str) -> None:
    outputs = {
        "angles of positions": "float[T, 8] y", "the head after experts": "int64[T, 1] y",
        "the best of its own values, times a kernel": "float[T, 8] y",
    }.get(name, f"float[T, {D}] y")  # fmt: skip
    text = NOT[name]
    assert gates_of(text, rng, outputs) == set()


REST = f"{SCORES} {DENSE} {BY_COLUMN}"
HIDDEN = {
    "Tanh": ("h1 = MatMul(n, S) t1 = Tanh(h1) r = MatMul(t1, RS)", {"h1"}),
    "three layers": (
        "h1 = MatMul(n, S) t1 = Relu(h1) h2 = MatMul(t1, S2) t2 = Relu(h2) r = MatMul(t2, RS)",
        {"h1", "h2"}),
    "norm, bias, residual": (
        "h0 = MatMul(n, S) h1 = Add(h0, N8) l1 = LayerNormalization(h1, N8) h2 = MatMul(l1, S2)"
        " a2 = Relu(h2) s2 = Add(a2, l1) r = MatMul(s2, RS)", {"h0", "h2"}),
    "gated": (
        "h1 = MatMul(n, S) g1 = MatMul(n, M) sg = Sigmoid(g1) m1 = Mul(h1, sg) r = MatMul(m1, RS)",
        {"h1", "g1"}),
    "read by an output": ("h1 = MatMul(n, S) t1 = Tanh(h1) out = Identity(t1) r = MatMul(t1, RS)",
        set()),
    "read by another linear": (
        "h1 = MatMul(n, S) t1 = Tanh(h1) out = MatMul(t1, S2) r = MatMul(t1, RS)", set()),
    "not alone in what the router reads": (
        "h1 = MatMul(n, S) t1 = Tanh(h1) x8 = ReduceSum(x, minus) s1 = Add(t1, x8)"
        " r = MatMul(s1, RS)", set()),
    "larger than what it decides about": (
        "h1 = MatMul(n, Big) t1 = Tanh(h1) r = MatMul(t1, RB)", set()),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_the_hidden_layers_of_a_router(rng: np.random.Generator, name: str) -> None:
    text, hidden = HIDDEN[name]
    outputs = f"float[T, {D}] y" + (", float[T, 8] out" if "out = " in text else "")
    assert gates_of(f"{text} {REST.replace(' h = ', ' hx = ').replace('(h)', '(hx)')}", rng,
                    outputs) == {"r"} | hidden  # fmt: skip


def test_the_layers_before_a_head_are_no_router(rng: np.random.Generator) -> None:
    text = "h1 = MatMul(n, S) t1 = Tanh(h1) l = MatMul(t1, RS) y = ArgMax<axis = -1>(l)"
    assert gates_of(text, rng, "int64[T, 1] y") == set()
