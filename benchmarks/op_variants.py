"""What the same layer costs in ONNX Runtime as different op variants.

    python benchmarks/variants.py --threads 1 2

Attention with a KV cache and a mask, RMSNorm after a residual sum, and rotary embeddings: as
exporters write them, as graph optimization leaves them, and as ONNX Runtime's own ops. All variants
of a layer are timed in turn, in separate sessions; their results are compared with the first one's.
docs/decisions/0005 rests on this.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.runtime.session import session_options

HEADS, GROUPS, SIZE = 32, 4, 64
HIDDEN = HEADS * SIZE
_RUNS = 5  # of a session that was run once
Arrays = dict[str, NDArray[np.generic]]

_Q = "q4 = Reshape(q, by_size) qh = Transpose<perm = [0, 2, 1, 3]>(q4)"
_KV = (
    "k4 = Reshape(k, by_size) kt = Transpose<perm = [0, 2, 1, 3]>(k4) v4 = Reshape(v, by_size)"
    " vt = Transpose<perm = [0, 2, 1, 3]>(v4) kc = Concat<axis = 2>(pk, kt)"
    " vc = Concat<axis = 2>(pv, vt)"
)
_REPEAT = " ".join(
    f"{n}s = Shape({n}c) {n}l = Gather({n}s, two) {n}w = Concat<axis = 0>(one_four, eight, {n}l,"
    f" size) {n}m = Concat<axis = 0>(one_all, {n}l, size) {n}u = Unsqueeze({n}c, two)"
    f" {n}e = Expand({n}u, {n}w) {n}h = Reshape({n}e, {n}m)"
    for n in "kv"
)
_SCORES = "kx = Transpose<perm = [0, 1, 3, 2]>(kh) qs = Mul(qh, scale) s = MatMul(qs, kx)"
_OUT = "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merged)"
_SOFT = "sm = Add(s, mask) p = Softmax(sm)"
_EMPTY = "pf = Slice(p, zero_at, one_at, last) n = IsNaN(pf)"
_LENGTHS = (
    "ps = Shape<start = 2, end = 3>(pk) ns = Shape<start = 1, end = 2>(k) total = Add(ps, ns)"
    " tot = Cast<to = 6>(total) tots = Squeeze(tot) seq = Sub(tot, one32)"
)

ATTENTION = {
    "repeated heads, guard on probabilities": f"{_Q} {_KV} {_REPEAT} {_SCORES} {_SOFT} n = IsNaN(p)"
    f" g = Where(n, zero, p) o = MatMul(g, vh) {_OUT}",
    "repeated heads, guard after the product": f"{_Q} {_KV} {_REPEAT} {_SCORES} {_SOFT}"
    f" o_ = MatMul(p, vh) {_EMPTY} o = Where(n, zero, o_) {_OUT}",
    "grouped heads, guard after the product (optimized)": f"{_Q} {_KV} qg = Reshape(qh, grouped)"
    " kx = Transpose<perm = [0, 1, 3, 2]>(kc) qs = Mul(qg, scale) s_ = MatMul(qs, kx)"
    f" s = Reshape(s_, all_heads) {_SOFT} pg = Reshape(p, grouped) og = MatMul(pg, vc)"
    f" o_ = Reshape(og, all_heads) {_EMPTY} o = Where(n, zero, o_) {_OUT}",
    "MultiHeadAttention, repeated heads": f"{_KV} {_REPEAT}"
    f" y = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(q, kh, vh, , , mask)",
    "GroupQueryAttention, mask as bias": f"{_LENGTHS} y, pk2, pv2 ="
    f" com.microsoft.GroupQueryAttention<num_heads = {HEADS}, kv_num_heads = {GROUPS}>"
    "(q, k, v, pk, pv, seq, tots, , , , mask)",
    "GroupQueryAttention, no mask": f"{_LENGTHS} y, pk2, pv2 ="
    f" com.microsoft.GroupQueryAttention<num_heads = {HEADS}, kv_num_heads = {GROUPS}>"
    "(q, k, v, pk, pv, seq, tots)",
    "Attention of opset 23": f"y, pk2, pv2 = Attention<q_num_heads = {HEADS},"
    f" kv_num_heads = {GROUPS}>(q, k, v, mask, pk, pv)",
}  # fmt: skip
_MEAN = "x = Add(q, r) sq = Pow(x, two_f) m = ReduceMean(sq, last) a = Add(m, eps) d = Sqrt(a)"
NORM = {
    "Reciprocal (dynamo)": f"{_MEAN} i = Reciprocal(d) xn = Mul(x, i) y = Mul(gain, xn)",
    "Div (torchscript, optimized)": f"{_MEAN} i = Div(one_f, d) xn = Mul(x, i) y = Mul(gain, xn)",
    "SimplifiedLayerNormalization": "x = Add(q, r)"
    " y = SimplifiedLayerNormalization<epsilon = 0.00001>(x, gain)",
    "SkipSimplifiedLayerNormalization": "y, none1, none2, x ="
    " com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.00001>(q, r, gain)",
}
ROTARY = {
    "decomposed": f"{_Q} c = Unsqueeze(cos, one_at) s = Unsqueeze(sin, one_at) a = Mul(qh, c)"
    " lo = Slice(qh, zero_at, half, last) hi = Slice(qh, half, far, last) n = Neg(hi)"
    " z = Concat<axis = -1>(n, lo) b = Mul(z, s) y = Add(a, b)",
    "RotaryEmbedding": f"{_Q} c = Slice(cos, zero_at, half, last) c2 = Squeeze(c, zero_at)"
    " s = Slice(sin, zero_at, half, last) s2 = Squeeze(s, zero_at)"
    " y = com.microsoft.RotaryEmbedding(qh, places, c2, s2)",
}
_CONSTANTS: Mapping[str, NDArray[np.generic]] = {
    "by_size": np.array([0, 0, -1, SIZE]), "merged": np.array([0, 0, HIDDEN]),
    "grouped": np.array([0, GROUPS, -1, 0]), "all_heads": np.array([0, HEADS, -1, 0]),
    "two": np.array([2]), "one_four": np.array([1, GROUPS]), "one_all": np.array([1, HEADS]),
    "eight": np.array([HEADS // GROUPS]), "size": np.array([SIZE]), "zero_at": np.array([0]),
    "one_at": np.array([1]), "last": np.array([-1]), "one32": np.array([1], np.int32),
    "scale": np.array(SIZE**-0.5, np.float32), "zero": np.zeros(1, np.float32),
    "two_f": np.array(2, np.float32), "one_f": np.array(1, np.float32),
    "eps": np.array(1e-5, np.float32), "gain": np.linspace(0.5, 2, HIDDEN, dtype=np.float32),
    "half": np.array([SIZE // 2]), "far": np.array([1 << 40]),
}  # fmt: skip
_INPUTS = {
    "q": f"float[b, s, {HIDDEN}]", "r": f"float[b, s, {HIDDEN}]",
    "k": f"float[b, s, {GROUPS * SIZE}]", "v": f"float[b, s, {GROUPS * SIZE}]",
    "pk": f"float[b, {GROUPS}, p, {SIZE}]", "pv": f"float[b, {GROUPS}, p, {SIZE}]",
    "mask": "float[b, 1, s, t]", "cos": f"float[b, s, {SIZE}]", "sin": f"float[b, s, {SIZE}]",
    "places": "int64[b, s]",
}  # fmt: skip


def session_of(text: str, threads: int) -> ort.InferenceSession:
    """A session over one variant, whose inputs are those it names."""
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    inputs = ", ".join(f"{kind} {name}" for name, kind in _INPUTS.items() if name in tokens)
    kept = [f"float {name}" for name in ("y", "x", "kc", "vc", "pk2", "pv2") if name in tokens]
    opset = 23 if "= Attention<" in text else 18
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"g_ ({inputs}) => ({', '.join(kept)}) {{ {text} }}",
        initializers=[ir.Tensor(a, name=name) for name, a in _CONSTANTS.items() if name in tokens],
    )
    for output in model.graph.outputs:
        output.shape = None
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), session_options(threads=threads),
        providers=["CPUExecutionProvider"],
    )  # fmt: skip


def feeds(new: int, past: int) -> Arrays:
    """Random inputs of a step of one sequence, a causal mask, positions that go on."""
    rng = np.random.default_rng(0)
    sizes = {"b": 1, "s": new, "p": past, "t": past + new}
    made: Arrays = {}
    for name, kind in _INPUTS.items():
        shape = [sizes.get(size.strip()) or int(sizes.get(size.strip(), size.strip()))
                 for size in kind.partition("[")[2][:-1].split(",")]  # fmt: skip
        made[name] = rng.standard_normal(shape).astype(np.float32)
    allowed = np.arange(past + new) <= past + np.arange(new)[:, None]
    made["mask"] = np.where(allowed, 0, -np.inf).astype(np.float32)[None, None]
    made["places"] = np.arange(new)[None]
    for name in ("cos", "sin"):  # both halves are the same
        made[name][..., SIZE // 2 :] = made[name][..., : SIZE // 2]
    return made


def time_variants(
    variants: Mapping[str, str], arrays: Arrays, *, threads: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each, all in turn; one session at a time, whose threads wait busily.

    Raises:
        SystemExit: one gives other numbers than the first.
    """
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    expected: NDArray[np.generic] | None = None
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, text in variants.items():
            session = session_of(text, threads)
            own = {item.name: values[item.name] for item in session.get_inputs()}
            found = session.run_with_ort_values(["y"], own)[0].numpy()
            expected = found if expected is None else expected
            if found.shape != expected.shape or np.abs(found - expected).max() > 1e-4:
                raise SystemExit(f"{name} is not the same")
            for _ in range(_RUNS):
                started = time.perf_counter()
                session.run_with_ort_values(None, own)
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(some) for name, some in times.items()}


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # constants come after the text
    steps = [(options.prefill, 0), *((1, depth) for depth in options.depths)]
    for threads in options.threads:
        print(f"\n{HEADS} heads of {SIZE}, {GROUPS} of keys; ms of a layer; threads: {threads}\n")
        shown = [f"{new} tokens" if new > 1 else f"1 after {past}" for new, past in steps]
        print(f"| layer | variant | {' | '.join(shown)} |")
        print(f"| --- | --- |{' --- |' * len(steps)}")
        for layer, variants in (("attention", ATTENTION), ("norm", NORM), ("rotary", ROTARY)):
            columns = [
                time_variants(variants, feeds(*step), threads=threads, rounds=options.rounds)
                for step in steps
            ]
            for name in variants:
                print(f"| {layer} | {name} | {' | '.join(f'{c[name]:.3f}' for c in columns)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
