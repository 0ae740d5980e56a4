"""Small models with Scan, Loop and If between their linears; bodies declare no shapes.

x [batch, tokens, 64] -> y [batch, tokens, 64]; weights W1, W2, V [64, 64] and b [64].
"""

from __future__ import annotations

import re

import numpy as np
import onnx

K = 64

_STATE = """sh = Shape(x) first = Slice(sh, i0, i1) hs = Concat<axis = 0>(first, k)
    h0 = ConstantOfShape<value = float[1] {0}>(hs)"""
_ONE = "Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = "
_TWO = "Scan<num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes = [1, 1], body = "
_LOOP = "yes = Constant<value = bool {1}>() n = Constant<value = int64 {3}>()"
_POSITIVE = "uu = Mul(u, u) s = ReduceSum<keepdims = 0>(uu) c = Greater(s, f0)"


def _decay(end: str = "") -> str:
    """A Scan over the tokens whose state decays."""
    text = """body (hi_, ui_) => (ho_, yo_) { dec_ = Constant<value = float {0.9}>()
        hd_ = Mul(hi_, dec_) ho_ = Add(hd_, ui_) yo_ = Identity(ho_) }>"""
    return _ONE + text.replace("_", end)


# Name -> nodes from x to y. In most, what a linear made goes into a body, whose output goes on.
BODIES = {
    "scan": f"u = MatMul(x, W1) {_STATE} hl, ys = {_decay()}(h0, u) t = Tanh(ys) y = MatMul(t, W2)",
    "scan, state before a linear": f"""{_STATE} n = Tanh(x) u = MatMul(n, W1)
        hl, ys = {_decay()}(h0, u) t = Tanh(ys) y = MatMul(t, W2)""",
    "two scans": f"""u = MatMul(x, W1) {_STATE} hl, ys = {_decay()}(h0, u) t = Tanh(ys)
        v = MatMul(t, W2) hl2, ys2 = {_decay("2")}(hl, v) y = MatMul(ys2, V)""",
    "scan of two states and outputs": f"""u = MatMul(x, W1) w = MatMul(x, W2) g = Sigmoid(w)
        {_STATE} h1, c1, ya, yb = {_TWO} body (hi, ci, ui, gi) => (ho, co, yo, zo)
        {{ hg = Mul(hi, gi) ho = Add(hg, ui) cg = Mul(ci, gi) co = Add(cg, ho) yo = Tanh(co)
        zo = Mul(yo, gi) }}>(h0, h0, u, g) a = Add(ya, yb) y = MatMul(a, V)""",
    "scan with a linear inside": f"""u = MatMul(x, W1) {_STATE} hl, ys = {_ONE} body (hi, ui) =>
        (ho, yo) {{ hw = MatMul(hi, V) hb = Add(hw, b) hs_ = Add(hb, ui) ho = Tanh(hs_)
        yo = Identity(ho) }}>(h0, u) y = MatMul(ys, W2)""",
    "scan that reads outer values": f"""u = MatMul(x, W1) {_STATE} g = Sigmoid(u)
        m = ReduceMean<keepdims = 0>(g, i1) hl, ys = {_ONE} body (hi, ui) => (ho, yo)
        {{ hd = Mul(hi, m) ha = Add(hd, b) ho = Add(ha, ui) yo = Identity(ho) }}>(h0, u)
        t = Tanh(ys) y = MatMul(t, W2)""",
    "linear attention": """q = MatMul(x, W1) kk = MatMul(x, W2) v = MatMul(x, V) sh = Shape(x)
        first = Slice(sh, i0, i1) hs = Concat<axis = 0>(first, k, k)
        s0 = ConstantOfShape<value = float[1] {0}>(hs)
        sl, o = Scan<num_scan_inputs = 3, scan_input_axes = [1, 1, 1], scan_output_axes = [1],
        body = body (si, qi, ki, vi) => (so, oo) { kc = Unsqueeze(ki, i2) vr = Unsqueeze(vi, i1)
        kv = MatMul(kc, vr) dec = Constant<value = float {0.5}>() sd = Mul(si, dec)
        so = Add(sd, kv) qr = Unsqueeze(qi, i1) or = MatMul(qr, so) oo = Squeeze(or, i1) }>
        (s0, q, kk, v) t = Tanh(o) y = MatMul(t, W1)""",
    "loop with a trip count": f"""u = MatMul(x, W1) {_LOOP} z = Loop<body = body (int64 it,
        bool ci, vi) => (co, vo) {{ co = Identity(ci) vt = Tanh(vi) vo = Add(vt, u) }}>(n, yes, u)
        y = MatMul(z, W2)""",
    "loop over the tokens": f"""u = MatMul(x, W1) ut = Transpose<perm = [1, 0, 2]>(u) sh = Shape(u)
        {_LOOP} l_ = Slice(sh, i1, i2) l = Squeeze(l_) h0 = Gather<axis = 0>(ut, zero)
        hl, ys = Loop<body = body (int64 it, bool ci, hi) => (co, ho, yo) {{ co = Identity(ci)
        ui = Gather<axis = 0>(ut, it) hr = Tanh(hi) ho = Add(hr, ui) yo = Identity(ho) }}>
        (l, yes, h0) o = Transpose<perm = [1, 0, 2]>(ys) y = MatMul(o, W2)""",
    "loop with a linear inside": f"""u = MatMul(x, W1) {_LOOP} z = Loop<body = body (int64 it,
        bool ci, vi) => (co, vo) {{ co = Identity(ci) vw = MatMul(vi, V) vb = Add(vw, b)
        vo = Tanh(vb) }}>(n, yes, u) y = MatMul(z, W2)""",
    "if in a loop": f"""u = MatMul(x, W1) {_LOOP} z = Loop<body = body (int64 it, bool ci, vi) =>
        (co, vo) {{ co = Identity(ci) odd = Equal(it, one) vo = If<then_branch = then () => (tv)
        {{ tt = Tanh(vi) tv = Add(tt, u) }}, else_branch = else () => (ev) {{ ev = Sigmoid(vi) }}>
        (odd) }}>(n, yes, u) y = MatMul(z, W2)""",
    "if with linears inside": f"""u = MatMul(x, W1) {_POSITIVE} z = If<then_branch = then () =>
        (tv) {{ tw = MatMul(u, V) tv = Add(tw, b) }}, else_branch = else () => (ev)
        {{ ew = MatMul(u, W2) ev = Tanh(ew) }}>(c) y = MatMul(z, W2)""",
    "branch that is an outer value": f"""u = MatMul(x, W1) {_POSITIVE} z = If<then_branch = then ()
        => (tv) {{ tv = Identity(u) }}, else_branch = else () => (ev) {{ ev = Mul(u, b) }}>(c)
        v = MatMul(u, V) a = Add(z, v) y = MatMul(a, W2)""",
    "sequence": """u = MatMul(x, W1) h = Tanh(u) q = SequenceConstruct(h, u) v = MatMul(h, V)
        c = ConcatFromSequence<axis = 2>(q) d, e = Split<axis = 2>(c, halves) f = Add(d, v)
        g = Mul(f, e) y = MatMul(g, W2)""",
    "sequence grown in a loop": f"""u = MatMul(x, W1) q0 = SequenceEmpty() {_LOOP}
        q = Loop<body = body (int64 it, bool ci, qi) => (co, qo) {{ co = Identity(ci)
        qo = SequenceInsert(qi, u) }}>(n, yes, q0) v = MatMul(u, V) w = SequenceAt(q, zero)
        f = Add(w, v) y = MatMul(f, W2)""",
    "axes made before a linear": f"""ax = Add(i0, i1) n = Unsqueeze(x, ax) xs = Squeeze(n, ax)
        u = MatMul(xs, W1) w = Unsqueeze(u, ax) us = Squeeze(w, ax) {_STATE}
        hl, ys = {_decay()}(h0, us) t = Tanh(ys) y = MatMul(t, W2)""",
}


def looped(name: str, *, opset: int = 18, held_inside: bool = False) -> onnx.ModelProto:
    """One of BODIES with random weights; nothing inside a body has a shape.

    Args:
        name: which.
        opset: of the model.
        held_inside: what only a body reads is held by the body.
    """
    rng = np.random.default_rng(5)
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        f"g_ (float[batch, tokens, {K}] x) => (float[batch, tokens, {K}] y) {{ {BODIES[name]} }}"
    )
    arrays: dict[str, np.ndarray] = {
        w: (rng.standard_normal((K, K)) * K**-0.5).astype(np.float32) for w in ("W1", "W2", "V")
    }
    arrays |= {"b": (rng.standard_normal(K) * 0.1).astype(np.float32), "f0": np.array(0, "f4")}
    arrays |= {f"i{i}": np.array([i], np.int64) for i in range(3)}
    arrays |= {"k": np.array([K], np.int64), "zero": np.array(0, np.int64)}
    arrays |= {"one": np.array(1, np.int64), "halves": np.array([K, K], np.int64)}
    outside = {read for node in proto.graph.node for read in node.input}
    words = set(re.findall(r"\w+", BODIES[name]))
    bodies = [
        attribute.g
        for node in proto.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
    ]
    for key in sorted(words & set(arrays)):
        readers = [body for body in bodies if any(key in node.input for node in body.node)]
        held_by = readers[0] if held_inside and readers and key not in outside else proto.graph
        held_by.initializer.append(onnx.numpy_helper.from_array(arrays[key], key))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return proto
