"""Small models with Scan, Loop and If between their linears; bodies declare no shapes.

x [batch, tokens, 64] -> y [batch, tokens, 64]; weights W1, W2, V [64, 64] and b [64].
"""

from __future__ import annotations

import numpy as np
import onnx

K = 64

# Scan over the tokens: a state that decays.
_STATE = (
    "sh = Shape(x) first = Slice(sh, i0, i1) hs = Concat<axis = 0>(first, k) h0 = ConstantOfShape"
    "<value = float[1] {0}>(hs)"
)
_SCAN = (
    "Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = body (hi, ui)"
    " => (ho, yo) { dec = Constant<value = float {0.9}>() hd = Mul(hi, dec) ho = Add(hd, ui)"
    " yo = Identity(ho) }>"
)
_ALWAYS = "yes = Constant<value = bool {1}>()"

# Name -> nodes from x to y. In the middle of most, what a linear made goes into a body.
BODIES = {
    "scan": f"u = MatMul(x, W1) {_STATE} hl, ys = {_SCAN}(h0, u) t = Tanh(ys) y = MatMul(t, W2)",
    "scan, state before a linear": f"{_STATE} n = Tanh(x) u = MatMul(n, W1)"
    f" hl, ys = {_SCAN}(h0, u) t = Tanh(ys) y = MatMul(t, W2)",
    "two scans": f"u = MatMul(x, W1) {_STATE} hl, ys = {_SCAN}(h0, u) t = Tanh(ys)"
    f" v = MatMul(t, W2) hl2, ys2 = {_SCAN.replace('(hi, ui)', '(hi2, ui2)').replace('(ho, yo)', '(ho2, yo2)').replace('hd = Mul(hi, dec) ho = Add(hd, ui) yo = Identity(ho)', 'hd2 = Mul(hi2, dec2) ho2 = Add(hd2, ui2) yo2 = Identity(ho2)').replace('dec =', 'dec2 =')}(hl, v)"
    " y = MatMul(ys2, V)",
    "scan of two states and outputs": f"u = MatMul(x, W1) w = MatMul(x, W2) g = Sigmoid(w) {_STATE}"
    " h1, c1, ya, yb = Scan<num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes ="
    " [1, 1], body = body (hi, ci, ui, gi) => (ho, co, yo, zo) { hg = Mul(hi, gi) ho = Add(hg, ui)"
    " cg = Mul(ci, gi) co = Add(cg, ho) yo = Tanh(co) zo = Mul(yo, gi) }>(h0, h0, u, g)"
    " a = Add(ya, yb) y = MatMul(a, V)",
    "scan with a linear inside": f"u = MatMul(x, W1) {_STATE} hl, ys = Scan<num_scan_inputs = 1,"
    " scan_input_axes = [1], scan_output_axes = [1], body = body (hi, ui) => (ho, yo) {"
    " hw = MatMul(hi, V) hb = Add(hw, b) hs_ = Add(hb, ui) ho = Tanh(hs_) yo = Identity(ho) }>"
    "(h0, u) y = MatMul(ys, W2)",
    "scan that reads outer values": f"u = MatMul(x, W1) {_STATE} g = Sigmoid(u) m = ReduceMean"
    "<keepdims = 0>(g, i1) hl, ys = Scan<num_scan_inputs = 1, scan_input_axes = [1],"
    " scan_output_axes = [1], body = body (hi, ui) => (ho, yo) { hd = Mul(hi, m) ha = Add(hd, b)"
    " ho = Add(ha, ui) yo = Identity(ho) }>(h0, u) t = Tanh(ys) y = MatMul(t, W2)",
    "linear attention": "q = MatMul(x, W1) kk = MatMul(x, W2) v = MatMul(x, V) sh = Shape(x)"
    " first = Slice(sh, i0, i1) hs = Concat<axis = 0>(first, k, k) s0 = ConstantOfShape"
    "<value = float[1] {0}>(hs) sl, o = Scan<num_scan_inputs = 3, scan_input_axes = [1, 1, 1],"
    " scan_output_axes = [1], body = body (si, qi, ki, vi) => (so, oo) {"
    " kc = Unsqueeze(ki, i2) vr = Unsqueeze(vi, i1) kv = MatMul(kc, vr)"
    " dec = Constant<value = float {0.5}>() sd = Mul(si, dec) so = Add(sd, kv) qr = Unsqueeze"
    "(qi, i1) or = MatMul(qr, so) oo = Squeeze(or, i1) }>(s0, q, kk, v) t = Tanh(o)"
    " y = MatMul(t, W1)",
    "loop with a trip count": f"u = MatMul(x, W1) n = Constant<value = int64 {{3}}>() {_ALWAYS}"
    " z = Loop<body = body (int64 it, bool ci, vi) => (co, vo) { co = Identity(ci) vt = Tanh(vi)"
    " vo = Add(vt, u) }>(n, yes, u) y = MatMul(z, W2)",
    "loop over the tokens": "u = MatMul(x, W1) ut = Transpose<perm = [1, 0, 2]>(u) sh = Shape(u)"
    f" n_ = Slice(sh, i1, i2) n = Squeeze(n_) {_ALWAYS} h0 = Gather<axis = 0>(ut, zero)"
    " hl, ys = Loop<body = body (int64 it, bool ci, hi) => (co, ho, yo) { co = Identity(ci)"
    " ui = Gather<axis = 0>(ut, it) hr = Tanh(hi) ho = Add(hr, ui) yo = Identity(ho) }>"
    "(n, yes, h0) o = Transpose<perm = [1, 0, 2]>(ys) y = MatMul(o, W2)",
    "loop with a linear inside": f"u = MatMul(x, W1) n = Constant<value = int64 {{2}}>() {_ALWAYS}"
    " z = Loop<body = body (int64 it, bool ci, vi) => (co, vo) { co = Identity(ci) vw = MatMul(vi, V)"
    " vb = Add(vw, b) vo = Tanh(vb) }>(n, yes, u) y = MatMul(z, W2)",
    "if in a loop": f"u = MatMul(x, W1) n = Constant<value = int64 {{3}}>() {_ALWAYS}"
    " z = Loop<body = body (int64 it, bool ci, vi) => (co, vo) { co = Identity(ci) odd = Equal(it, one)"
    " vo = If<then_branch = then () => (tv) { tt = Tanh(vi) tv = Add(tt, u) }, else_branch ="
    " else () => (ev) { ev = Sigmoid(vi) }>(odd) }>(n, yes, u) y = MatMul(z, W2)",
    "if with linears inside": "u = MatMul(x, W1) uu = Mul(u, u) s = ReduceSum<keepdims = 0>(uu) c = Greater(s, f0)"
    " z = If<then_branch = then () => (tv) { tw = MatMul(u, V) tv = Add(tw, b) }, else_branch ="
    " else () => (ev) { ew = MatMul(u, W2) ev = Tanh(ew) }>(c) y = MatMul(z, W2)",
    "if whose branch holds weights": "u = MatMul(x, W1) uu = Mul(u, u) s = ReduceSum<keepdims = 0>(uu)"
    " c = Greater(s, f0) z = If<then_branch = then () => (tv) { td = Constant<value = float[2]"
    " {1, 2}>() tc = ReduceSum<keepdims = 0>(td) tv = Mul(u, tc) }, else_branch ="
    " else () => (ev) { ev = Identity(u) }>(c) y = MatMul(z, W2)",
    "sequence": "u = MatMul(x, W1) h = Tanh(u) q = SequenceConstruct(h, u) v = MatMul(h, V)"
    " a = SequenceAt(q, zero) c = ConcatFromSequence<axis = 2>(q) d, e = Split<axis = 2>(c, halves)"
    " f = Add(a, v) g = Mul(f, e) y = MatMul(g, W2)",
    "sequence grown in a loop": f"u = MatMul(x, W1) q0 = SequenceEmpty() n = Constant<value = int64"
    f" {{2}}>() {_ALWAYS} q = Loop<body = body (int64 it, bool ci, qi) => (co, qo) {{ co = Identity(ci)"
    " qo = SequenceInsert(qi, u) }>(n, yes, q0) v = MatMul(u, V) c = ConcatFromSequence<axis = 2>"
    "(q) d, e = Split<axis = 2>(c, halves) f = Add(d, v) y = MatMul(f, W2)",
    "axes made before a linear": "ax = Add(i0, i1) n = Unsqueeze(x, ax) xs = Squeeze(n, ax)"
    " u = MatMul(xs, W1) uu = Unsqueeze(u, ax) us = Squeeze(uu, ax) sh = Shape(x) first ="
    f" Slice(sh, i0, i1) hs = Concat<axis = 0>(first, k) h0 = ConstantOfShape<value = float[1] {{0}}"
    f">(hs) hl, ys = {_SCAN}(h0, us) t = Tanh(ys) y = MatMul(t, W2)",
}  # fmt: skip


def looped(name: str, *, opset: int = 18) -> onnx.ModelProto:
    """One of BODIES with random weights; nothing inside a body has a shape."""
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
    text = str(proto.graph)
    for key, array in arrays.items():
        if f'"{key}"' in text:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return proto


def with_branch_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same, with what only bodies read held by the bodies themselves."""
    outside = {name for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inside = {name for sub in attribute.g.node for name in sub.input}
                for tensor in list(proto.graph.initializer):
                    if tensor.name in inside - outside:
                        attribute.g.initializer.append(tensor)
                        proto.graph.initializer.remove(tensor)
    return proto
