"""Routers and gates are found by what their output does, however it is spelled; heads are not."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from tiny_graphs import build, run, weight

from fptq_onnx.graph.gates import find_gates
from fptq_onnx.graph.linears import find_linears

D, E, H = 16, 4, 24
SHAPES = {
    "R": (D, E), "R2": (D, E), "G": (D, 1), "U": (D, H), "Dn": (H, D), "U0": (D, H), "D0": (H, D),
    "U1": (D, H), "D1": (H, D), "U2": (D, H), "D2": (H, D), "U3": (D, H), "D3": (H, D),
    "EU": (E, D, H), "ED": (E, H, D), "V": (D, 64), "table": (64, D), "Wq": (D, D), "Wk": (D, D),
    "Wv": (D, D), "W": (D, D), "A": (D, 2), "C": (D, 8), "B": (D, 4), "P": (D, 4, H), "Wf": (D, 96),
    "Wg": (96, D), "gain": (D,), "b": (E,),
}  # fmt: skip
INTS = {
    "k1": [1], "k2": [2], "k5": [5], "one": [1], "minus": [-1], "zero": [0], "axis1": [1],
    "axis2": [2],
    "groups": [-1, 2, 2], "flat": [-1, E], "heads": [-1, 2, 2], "end": [np.iinfo(np.int64).max],
}  # fmt: skip
EXPERTS = " ".join(
    f"u{e} = MatMul(n, U{e}) a{e} = Relu(u{e}) y{e} = MatMul(a{e}, D{e})"
    f" z{e} = Unsqueeze(y{e}, one)"
    for e in range(E)
)
STACK = f"{EXPERTS} stack = Concat<axis = 1>(z0, z1, z2, z3)"
# What follows `w` [T, E], the weights of the experts, or none.
MIX = f"{STACK} wide = Unsqueeze(w, minus) m = Mul(stack, wide) y = ReduceSum<keepdims = 0>(m, one)"
PICKED = (
    "u = Gather(EU, i) d = Gather(ED, i) x3 = Unsqueeze(n, one) x4 = Unsqueeze(x3, one)"
    " h = MatMul(x4, u) a = Relu(h) o = MatMul(a, d) y = ReduceSum<keepdims = 0>(o, dims)"
)
ZEROS = "s = Shape(r) zeros = ConstantOfShape(s)"

ROUTERS = {
    "softmax before TopK": f"{ZEROS} p = Softmax(r) t, i = TopK<axis = -1>(p, k2)"
    f" w = ScatterElements<axis = 1>(zeros, i, t) {MIX}",
    "TopK, then softmax": f"{ZEROS} t, i = TopK(r, k2) p = Softmax(t)"
    f" w = ScatterElements<axis = 1>(zeros, i, p) {MIX}",
    "sigmoid and bias": f"s = Sigmoid(r) c = Add(s, b) t, i = TopK(c, k2)"
    f" g = GatherElements<axis = 1>(s, i) sr = Shape(r) zeros = ConstantOfShape(sr)"
    f" w = ScatterElements<axis = 1>(zeros, i, g) {MIX}",
    "groups first": f"s = Sigmoid(r) g3 = Reshape(s, groups) gt, gi = TopK(g3, k1)"
    f" gs = ReduceSum<keepdims = 0>(gt, axis2) bt, bi = TopK(gs, k1) sg = Shape(gs)"
    f" none = ConstantOfShape(sg) ones = Sub(bt, bt) on = Add(ones, unit)"
    f" gm = ScatterElements<axis = 1>(none, bi, on) gm3 = Unsqueeze(gm, minus) ms = Mul(g3, gm3)"
    f" fl = Reshape(ms, flat) t, i = TopK(fl, k1) z = ConstantOfShape(sf) sf = Shape(fl)"
    f" w = ScatterElements<axis = 1>(z, i, t) {MIX}".replace(
        "z = ConstantOfShape(sf) sf = Shape(fl)", "sf = Shape(fl) z = ConstantOfShape(sf)"
    ),
    "ArgMax to weights": f"i = ArgMax<axis = -1, keepdims = 1>(r) {PICKED}",
    "rows of ArgMax": "i = ArgMax<axis = -1, keepdims = 0>(r) c = Constant<value_int = 1>()"
    " q = Equal(i, c) nz = NonZero(q) at = Transpose(nz) rows = GatherND(n, at)"
    " u = MatMul(rows, U) a = Relu(u) dn = MatMul(a, Dn) y = ScatterND(n, at, dn)",
    "largest and Equal": f"p = Softmax(r) top = ReduceMax<keepdims = 1>(p, axis1)"
    f" hit = Equal(p, top) hot = Cast<to = 1>(hit) w = Mul(hot, p) {MIX}",
    "the second largest as threshold": f"t, i = TopK(r, k2) least = Slice(t, one, k2, axis1)"
    f" on = GreaterOrEqual(r, least) o = Cast<to = 1>(on) p = Sigmoid(r) w = Mul(o, p) {MIX}",
    "OneHot": "i = ArgMax<axis = -1, keepdims = 0>(r)"
    " values = Constant<value_floats = [0.0, 1.0]>()"
    f" depth = Constant<value_int = {E}>() w = OneHot(i, depth, values) {MIX}",
    "an expert picks its tokens": "p = Softmax(r) pt = Transpose<perm = [1, 0]>(p)"
    " t, i = TopK<axis = 1>(pt, k2) x3 = Gather(n, i) h = MatMul(x3, EU) a = Relu(h)"
    " o = MatMul(a, ED) t3 = Unsqueeze(t, minus) ow = Mul(o, t3)"
    " y = ReduceSum<keepdims = 0>(ow, zero)",
    "noise": "rn = RandomNormalLike(r) no = MatMul(n, R2) sp = Softplus(no) sn = Mul(rn, sp)"
    f" rr = Add(r, sn) i = ArgMax<axis = -1, keepdims = 1>(rr) {PICKED}",
    "Gumbel": "un = RandomUniformLike(r) l = Log(un) nl = Neg(l) ll = Log(nl) g = Sub(r, ll)"
    f" p = Softmax(g) i = ArgMax<axis = -1, keepdims = 1>(p) {PICKED}",
    "dispatch by Einsum": "t, i = TopK(r, k1) c = Squeeze(i, minus)"
    " values = Constant<value_floats = [0.0, 1.0]>() depth = Constant<value_int = 4>()"
    ' hot = OneHot(c, depth, values) x3 = Einsum<equation = "te,td->etd">(hot, n)'
    " h = MatMul(x3, EU) a = Relu(h) o = MatMul(a, ED)"
    ' y = Einsum<equation = "etd,te->td">(o, hot)',
    "MoE op": "y = com.microsoft.MoE<k = 1, activation_type = \"relu\">(n, r, EM1, , EM2)",
    "weighed by all": f"w = Softmax(r) {MIX}",
    "weighed by all as a product": f"p = Softmax(r) {STACK} w3 = Unsqueeze(p, one)"
    " m = MatMul(w3, stack) y = Squeeze(m, one)",
    "chosen afterwards": f"i = ArgMax<axis = -1, keepdims = 1>(r) {STACK} i3 = Unsqueeze(i, minus)"
    f" shape = Constant<value_ints = [1, 1, {D}]>() ie = Expand(i3, shape)"
    " c = GatherElements<axis = 1>(stack, ie) cs = Squeeze(c, one) y = Add(cs, n)",
}  # fmt: skip


def model_of(text: str, rng: np.random.Generator, kind: str = f"float[T, {D}] y") -> ir.Model:
    names = set(re.findall(r"\b\w+\b", text))
    shapes = SHAPES | {"EM1": (E, H, D), "EM2": (E, D, H)}
    weights = {name: weight(rng, *shape) for name, shape in shapes.items() if name in names}
    weights |= {name: np.array(v, np.int64) for name, v in INTS.items() if name in names}
    if "dims" in names:
        weights["dims"] = np.array([1, 2], np.int64)
    if "unit" in names:
        weights["unit"] = np.array(1, np.float32)
    return build(
        f"g_ (float[T, {D}] x) => ({kind}) {{ {text} }}", weights, microsoft=True, opset=18
    )


def gates_of(model: ir.Model, rng: np.random.Generator) -> dict[str, str]:
    """What is found, after seeing that ONNX Runtime runs the graph."""
    run(model, {"x": rng.standard_normal((6, D)).astype(np.float32)})
    return find_gates(find_linears(model).linears)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_is_found(rng: np.random.Generator, name: str) -> None:
    text = f"n = LayerNormalization(x, gain) r = MatMul(n, R) {ROUTERS[name]}"
    found = gates_of(model_of(text, rng), rng)
    also = {"no"} if name == "noise" else set()
    assert set(found) == {"r"} | also, found
    assert re.match(r"picks experts|weighs what other linears make", found["r"]), found


@pytest.mark.parametrize("name", ["softmax before TopK", "ArgMax to weights", "rows of ArgMax"])
@pytest.mark.parametrize("router", [
    "r0 = MatMul(n, R) r = Add(r0, b)", "r = Gemm(n, R, b)",
    "w16 = Cast<to = 10>(R) w32 = Cast<to = 1>(w16) r = MatMul(n, w32)",
])  # fmt: skip
def test_spellings_of_the_linear(rng: np.random.Generator, name: str, router: str) -> None:
    text = f"n = LayerNormalization(x, gain) {router} {ROUTERS[name]}"
    assert len(gates_of(model_of(text, rng), rng)) == 1


def test_two_levels(rng: np.random.Generator) -> None:
    """A group first, then the experts in it."""
    text = (
        "n = LayerNormalization(x, gain) g = MatMul(n, A) gi = ArgMax<axis = -1, keepdims = 1>(g)"
        " r = MatMul(n, R) r3 = Reshape(r, groups) gi3 = Unsqueeze(gi, minus)"
        " shape = Constant<value_ints = [1, 1, 2]>() ge = Expand(gi3, shape)"
        " inner = GatherElements<axis = 1>(r3, ge) i2 = ArgMax<axis = -1, keepdims = 0>(inner)"
        f" two = Constant<value_int = 2>() g2 = Mul(gi, two) i = Add(g2, i2) {PICKED}"
    )
    assert set(gates_of(model_of(text, rng), rng)) == {"g", "r"}


SHARED = "u = MatMul(n, U) a = Relu(u) d = MatMul(a, Dn) g = MatMul(n, G)"


@pytest.mark.parametrize("text", ["y = Mul(s, d)", "m = Mul(d, s) y = Add(x, m)"])
def test_the_gate_of_a_shared_expert(rng: np.random.Generator, text: str) -> None:
    text = f"n = LayerNormalization(x, gain) {SHARED} s = Sigmoid(g) {text}"
    found = gates_of(model_of(text, rng), rng)
    assert set(found) == {"g"} and "weighs what other linears make" in found["g"]


BODY = (
    "body = inner (float[8] h, float[8] xt, float[8] d) => (float[8] hn, float[8] o)"
    " { f = Mul(h, d) hn = Add(f, xt) o = Identity(hn) }"
)


@pytest.mark.parametrize("rate", ["sp = Softplus(dt) na = Neg(sp) d = Exp(na)", "d = Sigmoid(dt)"])
@pytest.mark.parametrize(
    ("low", "gates"),
    [("dt = MatMul(n, B) ", {"dt"}), ("lo = MatMul(n, A) dt = MatMul(lo, A8) ", {"dt"})],
)
def test_the_decay_of_a_scan(
    rng: np.random.Generator, rate: str, low: str, gates: set[str]
) -> None:
    body = BODY if "A8" in low else BODY.replace("float[8]", "float[4]")
    v = "v = MatMul(n, C8)" if "A8" in low else "v = MatMul(n, C4)"
    text = (
        f"n = LayerNormalization(x, gain) {low}{rate} {v} hd = Constant<value_ints = [0]>()"
        f" h0 = ReduceSum<keepdims = 0>(v, hd)"
        f" last, y = Scan<num_scan_inputs = 2, {body}>(h0, v, d)"
    )
    SHAPES.update({"A8": (2, 8), "C8": (D, 8), "C4": (D, 4)})
    model = model_of(text, rng, "float[T, N] y")
    found = gates_of(model, rng)
    assert set(found) == gates and "how fast a state decays" in found["dt"]


def test_a_decay_made_in_the_body(rng: np.random.Generator) -> None:
    body = (
        "body = inner (float[4] h, float[4] xt, float[4] r) => (float[4] hn, float[4] o)"
        " { rb = Add(r, bias) sp = Softplus(rb) ne = Neg(sp) d = Exp(ne) f = Mul(h, d)"
        " hn = Add(f, xt) o = Identity(hn) }"
    )
    text = (
        "n = LayerNormalization(x, gain) dt = MatMul(n, B) v = MatMul(n, C4)"
        " hd = Constant<value_ints = [0]>() h0 = ReduceSum<keepdims = 0>(v, hd)"
        f" last, y = Scan<num_scan_inputs = 2, {body}>(h0, v, dt)"
    )
    SHAPES.update({"bias": (4,), "C4": (D, 4)})
    assert set(gates_of(model_of(text, rng, "float[T, 4] y"), rng)) == {"dt"}


def test_the_decay_of_sums_so_far(rng: np.random.Generator) -> None:
    text = (
        "n = LayerNormalization(x, gain) a = MatMul(n, B) sp = Softplus(a)"
        " at = Constant<value_int = 0>() c = CumSum(sp, at) d = Exp(c) v = MatMul(n, C4)"
        " y = Mul(v, d)"
    )
    SHAPES["C4"] = (D, 4)
    assert set(gates_of(model_of(text, rng, "float[T, 4] y"), rng)) == {"a"}


NOT = {
    "a head's token": ("l = MatMul(n, V) y = ArgMax<axis = -1, keepdims = 0>(l)", "int64[T] y"),
    "a head's best tokens": (
        "l = MatMul(n, V) t, y = TopK(l, k5) p = Softmax(t)", "int64[T, 5] y, float[T, 5] p"),
    "sampled from the best": (
        "l = MatMul(n, V) t, i = TopK(l, k5) p = Log(q) q = Softmax(t)"
        " s = Multinomial<dtype = 7, sample_size = 1>(p) y = GatherElements<axis = 1>(i, s)"
        .replace("p = Log(q) q = Softmax(t)", "q = Softmax(t) p = Log(q)"), "int64[T, 1] y"),
    "its token looked up again": (
        "l = MatMul(n, V) i = ArgMax<axis = -1, keepdims = 0>(l) e = Gather(table, i)"
        " c = Add(e, n) y = MatMul(c, W)", "float[T, D] y"),
    "its token's row, weighed": (
        "l = MatMul(n, V) i = ArgMax<axis = -1, keepdims = 0>(l) e = Gather(table, i)"
        " g = MatMul(n, Wq) c = Mul(e, g) y = MatMul(c, W)", "float[T, D] y"),
    "beams that reorder a cache": (
        "k = MatMul(x, Wk) kn = Add(k, n) l = MatMul(kn, V) t, i = TopK<axis = 0>(l, k2)"
        " first = Constant<value_int = 0>() beam = Gather<axis = 1>(i, first)"
        " y = Gather(k, beam)", "float[2, D] y"),
    "a classifier": ("l = MatMul(n, R) y = Softmax(l)", "float[T, E] y"),
    "two classifiers": (
        "l = MatMul(n, R) m = MatMul(n, R2) i = ArgMax<axis = -1>(l) j = ArgMax<axis = -1>(m)"
        " y = Concat<axis = 1>(i, j)", "int64[T, 2] y"),
    "the box of the best class": (
        "l = MatMul(n, R) box = MatMul(n, B) c = ReduceMax<keepdims = 0>(l, axis1)"
        " t, i = TopK<axis = 0>(c, k2) y = Gather(box, i)", "float[2, 4] y"),
    "attention": (
        "q = MatMul(n, Wq) k = MatMul(n, Wk) v = MatMul(n, Wv) kt = Transpose<perm = [1, 0]>(k)"
        " s = MatMul(q, kt) p = Softmax(s) c = MatMul(p, v) y = MatMul(c, W)", "float[T, D] y"),
    "the best keys only": (
        "q = MatMul(n, Wq) k = MatMul(n, Wk) v = MatMul(n, Wv) kt = Transpose<perm = [1, 0]>(k)"
        " s = MatMul(q, kt) t, i = TopK(s, k2) least = Slice(t, one, k2, axis1)"
        " on = GreaterOrEqual(s, least) low = Constant<value_float = -1e9>()"
        " m = Where(on, s, low) p = Softmax(m) c = MatMul(p, v) y = MatMul(c, W)", "float[T, D] y"),
    "attention over tokens by one column": (
        "g = MatMul(n, G) p = Softmax<axis = 0>(g) v = MatMul(n, Wv) m = Mul(p, v)"
        " y = ReduceSum<keepdims = 1>(m, zero)", "float[1, D] y"),
    "a gated MLP": (
        "g = MatMul(n, U0) u = MatMul(n, U1) s = Sigmoid(g) a = Mul(g, s) h = Mul(a, u)"
        " y = MatMul(h, D0)", "float[T, D] y"),
    "an output gate of full width": (
        "g = MatMul(n, Wq) s = Sigmoid(g) v = MatMul(n, Wv) h = Mul(s, v) y = MatMul(h, W)",
        "float[T, D] y"),
    "a leaky activation by Where": (
        "u = MatMul(n, U0) nil = Constant<value_float = 0.0>() on = Greater(u, nil)"
        " tenth = Constant<value_float = 0.1>() low = Mul(u, tenth) a = Where(on, u, low)"
        " y = MatMul(a, D0)", "float[T, D] y"),
    "the largest of its own values": (
        "u = MatMul(n, Wf) t, i = TopK(u, k5) s = Shape(u) zeros = ConstantOfShape(s)"
        " a = ScatterElements<axis = 1>(zeros, i, t) y = MatMul(a, Wg)", "float[T, D] y"),
    "a weighted kernel": (
        "k = MatMul(n, R) k3 = Reshape(k, heads) p = Softmax(k3) v = MatMul(n, B)"
        " v3 = Reshape(v, heads) y = Mul(p, v3)", "float[T, 2, 2] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT)
def test_these_are_none(rng: np.random.Generator, name: str) -> None:
    text, outputs = NOT[name]
    outputs = outputs.replace(", D]", f", {D}]").replace(", E]", f", {E}]")
    model = model_of(f"n = LayerNormalization(x, gain) {text}", rng, outputs)
    assert gates_of(model, rng) == {}
