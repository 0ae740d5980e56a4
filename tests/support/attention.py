"""Attention in the variants of exporters: x -> v -> attention -> o, hidden size 32.

4 query heads of size 8; 2 heads of values, where not all 4. 3 tokens, a cache of 5. Batch 2, but 1
where the op takes no more with a cache.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from support.tiny_graphs import build, weight

HEADS, SIZE, GROUPS, TOKENS, PAST = 4, 8, 2, 3, 5
K = HEADS * SIZE

# Probabilities [2, 4, 3, tokens of the cache and new], made from x.
_P = (
    "x4 = Reshape(x, by_heads) q = Transpose<perm = [0, 2, 1, 3]>(x4)"
    " k = Transpose<perm = [0, 2, 3, 1]>(x4) s = MatMul(q, k) p = Softmax(s)"
)
_OLD = "z = Expand(zero, old) pp = Concat<axis = 3>(z, p)"
_MERGE = "t = Transpose<perm = [0, 2, 1, 3]>(h) m = Reshape(t, merged) o = MatMul(m, Wo)"
_END = f"h = MatMul(p, vh) {_MERGE}"
_END_OLD = _END.replace("MatMul(p, vh)", "MatMul(pp, vh)")
_SPLIT = "v4 = Reshape(v, by_heads) vh = Transpose<perm = [0, 2, 1, 3]>(v4)"
_GROUPED = "v4 = Reshape(v, by_groups) vt = Transpose<perm = [0, 2, 1, 3]>(v4)"
_REPEAT = "u = Unsqueeze(vt, two) e = Expand(u, five) vh = Reshape(e, by_all)"
_GQA = "com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>"

# Name -> text; a cache is the input `past`, and its successor the output `present`.
FOLDABLE = {
    "heads": f"{_P} v = MatMul(x, Wv) {_SPLIT} {_END}",
    "a bias": f"{_P} v_ = MatMul(x, Wv) v = Add(bv, v_) {_SPLIT} {_END}",
    "Gemm": f"{_P} xf = Reshape(x, rows) v = Gemm<transB = 1>(xf, Wv, bv) {_SPLIT}"
    " h = MatMul(p, vh)"
    " t = Transpose<perm = [0, 2, 1, 3]>(h) m = Reshape(t, merged) mf = Reshape(m, rows)"
    " o = Gemm(mf, Wo)",
    "casts": f"{_P} vc = MatMul(x, Wv) v = Cast<to = 1>(vc) {_SPLIT} {_END}",
    "grouped": f"{_P} v = MatMul(x, Wg) {_GROUPED} {_REPEAT} {_END}",
    "one group": f"{_P} v = MatMul(x, W1) v4 = Reshape(v, by_one)"
    f" vh = Transpose<perm = [0, 2, 1, 3]>(v4) {_END}",
    "split": f"{_P} qkv = MatMul(x, W3) a, b, v = Split<axis = 2>(qkv, thirds) {_SPLIT} {_END}",
    "split of rows": f"{_P} xf = Reshape(x, rows) qf = Gemm(xf, W3, b3) qkv = Reshape(qf, wide)"
    f" a, b, v = Split<axis = -1>(qkv, thirds) {_SPLIT} {_END}",
    "slices": f"{_P} qkv = MatMul(x, W3) a = Slice(qkv, begin, one_k, two)"
    f" v = Slice(qkv, two_k, end, two) y = Exp(a) {_SPLIT} {_END}",
    "parts of heads": f"{_P} qkv = MatMul(x, W3) v5 = Reshape(qkv, by_parts) a = Gather<axis = 3>"
    "(v5, index0) y = Exp(a) v4 = Gather<axis = 3>(v5, index2)"
    f" vh = Transpose<perm = [0, 2, 1, 3]>(v4) {_END}",
    "split in heads": f"{_P} qkv = MatMul(x, W3) v4 = Reshape(qkv, by_triples)"
    " vt = Transpose<perm = [0, 2, 1, 3]>(v4) a, b, vh = Split<axis = -1>(vt, twos)"
    f" {_END}",
    "slices in heads": f"{_P} qkv = MatMul(x, W3) v4 = Reshape(qkv, by_triples)"
    " vt = Transpose<perm = [0, 2, 1, 3]>(v4) a = Slice(vt, begin, less, minus)"
    " vh = Slice(vt, two_sizes, end, minus) y = Exp(a)"
    f" {_END}",
    "three dimensions": f"{_P} v = MatMul(x, Wv) {_SPLIT} v3 = Reshape(vh, as_batch)"
    " p3 = Reshape(p, as_batch_p) h3 = MatMul(p3, v3) h = Reshape(h3, by_all)"
    f" {_MERGE}",
    "cache": f"{_P} {_OLD} v = MatMul(x, Wg) {_GROUPED}"
    f" present = Concat<axis = -2>(past, vt) {_REPEAT.replace('(vt,', '(present,')} {_END_OLD}",
    "GroupQueryAttention": f"q = MatMul(x, Wv) k = MatMul(x, Wg) v = MatMul(x, Wg2)"
    f" m, pk, present = {_GQA}(q, k, v, past_k, past, lengths, total) o = MatMul(m, Wo)",
    "GroupQueryAttention, packed": "qkv = MatMul(x, W4)"
    f" m, pk, present = {_GQA}(qkv, , , past_k, past, lengths, total) o = MatMul(m, Wo)",
    "MultiHeadAttention": "q = MatMul(x, Wv) k = MatMul(x, Wv2) v = MatMul(x, Wv3)"
    " m = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v) o = MatMul(m, Wo)",
    "Attention": "q = MatMul(x, Wv) k = MatMul(x, Wg) v = MatMul(x, Wg2)"
    " m = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) o = MatMul(m, Wo)",
    "Attention of heads": f"{_P} v = MatMul(x, Wg) {_GROUPED} k4 = MatMul(x, Wg2)"
    " kg = Reshape(k4, by_groups) kh = Transpose<perm = [0, 2, 1, 3]>(kg) h = Attention(q, kh, vt)"
    f" {_MERGE}",
    "the same shape again": f"{_P} v = MatMul(x, Wv) {_SPLIT.replace('vh =', 'vt =')}"
    f" vh = Reshape(vt, by_all) h_ = MatMul(p, vh) h = Reshape(h_, by_all) {_MERGE}",
    # Falcon: heads of queries, then one of keys and one of values.
    "one of the heads": f"{_P} qkv = MatMul(x, W8) v6 = Reshape(qkv, by_heads)"
    " a = Slice(v6, begin, less_two, two) b = Gather<axis = 2>(v6, four_) y = Add(a, b)"
    f" v1 = Gather<axis = 2>(v6, last) vh = Transpose<perm = [0, 2, 1, 3]>(v1) {_END}",
    "one of the heads, turned": f"{_P} qkv = MatMul(x, W8) v6 = Reshape(qkv, by_heads)"
    " y = Slice(v6, begin, less_two, two) vf = Transpose<perm = [2, 0, 1, 3]>(v6)"
    " v1 = GatherND(vf, last_row) vh = Transpose<perm = [1, 0, 2, 3]>(v1)"
    f" {_END}",
    # Falcon 40b: groups of so many heads of queries, one of keys and one of values.
    "a part of each group": f"{_P} qkv = MatMul(x, W9) v5 = Reshape(qkv, by_fours)"
    " y = Slice(v5, begin, less_two, three) v1 = Gather<axis = 3>(v5, last)"
    f" e = Expand(v1, repeated) {_SPLIT.replace('(v,', '(e,')} {_END}",
    "Attention of repeated heads": f"{_P} v = MatMul(x, Wg) {_GROUPED} {_REPEAT}"
    f" h = Attention(q, q, vh) {_MERGE}",
    "heads behind channels": f"{_P} v = MatMul(x, Wv) v4 = Reshape(v, by_size)"
    f" vh = Transpose<perm = [0, 3, 1, 2]>(v4) {_END}",
}  # fmt: skip

NOT_FOLDABLE = {
    "v feeds others": f"{_P} v = MatMul(x, Wv) y = Exp(v) {_SPLIT} {_END}",
    "heads feed others": f"{_P} v = MatMul(x, Wv) {_SPLIT} y = Exp(vh) {_END}",
    "attention feeds others": f"{_P} v = MatMul(x, Wv) {_SPLIT} {_END} y = Exp(t)",
    "a function of v": f"{_P} vl = MatMul(x, Wv) v = Relu(vl) {_SPLIT} {_END}",
    "a function of the heads": f"{_P} v = MatMul(x, Wv) {_SPLIT} h_ = MatMul(p, vh) h = Tanh(h_)"
    f" {_MERGE}",
    "a sum of heads": f"{_P} v = MatMul(x, Wv) {_SPLIT} h_ = MatMul(p, vh) h = Add(h_, vh)"
    f" {_MERGE}",
    "probabilities of v": f"v = MatMul(x, Wv) {_SPLIT} vk = Transpose<perm = [0, 1, 3, 2]>(vh)"
    f" s = MatMul(vh, vk) p = Softmax(s) {_END}",
    "tokens as channels": f"{_P} v = MatMul(x, Wv) {_SPLIT} h = MatMul(p, vh)"
    " t = Transpose<perm = [0, 2, 3, 1]>(h) m = Reshape(t, merged) o = MatMul(m, Wo)",
    "overlapping slices": f"{_P} qkv = MatMul(x, W3) a = Slice(qkv, one_k, end, two)"
    f" v = Slice(qkv, two_k, end, two) y = Exp(a) {_SPLIT} {_END}",
    "overlapping slices in heads": f"{_P} qkv = MatMul(x, W3) v4 = Reshape(qkv, by_triples)"
    " vt = Transpose<perm = [0, 2, 1, 3]>(v4) a = Slice(vt, one_size, end, minus)"
    f" vh = Slice(vt, two_sizes, end, minus) y = Exp(a) {_END}",
    "slices in heads of some columns": f"{_P} qkv = MatMul(x, W6)"
    " part = Slice(qkv, begin, three_k, two) other = Slice(qkv, two_sizes, three_k, two)"
    " y = Exp(other) v4 = Reshape(part, by_triples) vt = Transpose<perm = [0, 2, 1, 3]>(v4)"
    f" vh = Slice(vt, two_sizes, end, minus) {_END}",
    "a slice within": f"{_P} qkv = MatMul(x, W3) a = Slice(qkv, late, end, two)"
    f" v = Slice(qkv, two_k, end, two) y = Exp(a) {_SPLIT} {_END}",
    "the same part twice": f"{_P} qkv = MatMul(x, W3) v5 = Reshape(qkv, by_parts)"
    " a = Gather<axis = 3>(v5, index2) y = Exp(a) v4 = Gather<axis = 3>(v5, index2)"
    f" vh = Transpose<perm = [0, 2, 1, 3]>(v4) {_END}",
    "the same part twice, from the end": f"{_P} qkv = MatMul(x, W3) v5 = Reshape(qkv, by_parts)"
    " a = Gather<axis = 3>(v5, minus_one) y = Exp(a) v4 = Gather<axis = 3>(v5, index2)"
    f" vh = Transpose<perm = [0, 2, 1, 3]>(v4) {_END}",
    "one of the heads, read twice": f"{_P} qkv = MatMul(x, W8) v6 = Reshape(qkv, by_heads)"
    " y = Slice(v6, one_, end, two)"
    f" v1 = Gather<axis = 2>(v6, last) vh = Transpose<perm = [0, 2, 1, 3]>(v1) {_END}",
    "another function of a head": f"{_P} qkv = MatMul(x, W8) v6 = Reshape(qkv, by_heads)"
    " v1 = Gather<axis = 2>(v6, last) e = Transpose<perm = [0, 2, 1, 3]>(v1) y = Exp(v6)"
    f" vh = Identity(e) {_END}",
    "a cache without a past": f"{_P} v = MatMul(x, Wv) v4 = Reshape(v, by_heads)"
    f" present = Transpose<perm = [0, 2, 1, 3]>(v4) vh = Identity(present) {_END}",
    "a cache read elsewhere": f"{_P} {_OLD} v = MatMul(x, Wg) {_GROUPED} y = Exp(present)"
    f" present = Concat<axis = -2>(past, vt) {_REPEAT.replace('(vt,', '(present,')} {_END_OLD}",
    "a past read elsewhere": f"{_P} {_OLD} v = MatMul(x, Wg) {_GROUPED} y = Exp(past)"
    f" present = Concat<axis = -2>(past, vt) {_REPEAT.replace('(vt,', '(present,')} {_END_OLD}",
    "a past of its own": f"{_P} {_OLD} v = MatMul(x, Wg) {_GROUPED} past_ = Exp(past)"
    f" present = Concat<axis = -2>(past_, vt) {_REPEAT.replace('(vt,', '(present,')} {_END_OLD}",
    "the op's cache read elsewhere": "qkv = MatMul(x, W4)"
    f" m, pk, present = {_GQA}(qkv, , , past_k, past, lengths, total) o = MatMul(m, Wo)"
    " y = Exp(present)",
    "half the heads merged": f"{_P} v = MatMul(x, Wg) {_GROUPED} {_REPEAT}"
    f" {_END.replace('merged', 'halves').replace('Wo', 'Wh')}",
    "heads of two tokens merged": f"{_P} v = MatMul(x, Wg) {_GROUPED} {_REPEAT}"
    f" {_END.replace('merged', 'doubled').replace('Wo', 'W2')}",
    "the op's bias": "q = MatMul(x, Wv) k = MatMul(x, Wv2) v = MatMul(x, Wv3)"
    " m = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, b3) o = MatMul(m, Wo)",
}  # fmt: skip


def attention_model(rng: np.random.Generator, text: str) -> ir.Model:
    """A model of one of these texts over x [batch, 3, 32]; outputs o, y, present, pk, if any."""
    batch = 1 if _GQA in text else 2
    shapes: Mapping[str, tuple[int, ...]] = {
        "Wv": (K, K), "Wv2": (K, K), "Wv3": (K, K), "Wg": (K, GROUPS * SIZE),
        "Wg2": (K, GROUPS * SIZE), "W1": (K, SIZE), "W3": (K, 3 * K), "W6": (K, 6 * K),
        "W8": (K, (HEADS + 2) * SIZE), "W9": (K, GROUPS * 4 * SIZE),
        "W4": (K, K + 2 * GROUPS * SIZE), "Wo": (K, 5), "Wh": (K // 2, 5), "W2": (2 * K, 5),
        "bv": (K,), "b3": (3 * K,),
    }  # fmt: skip
    arrays: dict[str, NDArray[np.generic]] = {
        name: weight(rng, *shape) for name, shape in shapes.items()
    }
    arrays |= {
        "by_heads": np.array([2, TOKENS, -1, SIZE]), "by_groups": np.array([2, TOKENS, -1, SIZE]),
        "by_one": np.array([2, TOKENS, 1, SIZE]), "by_size": np.array([2, TOKENS, SIZE, HEADS]),
        "by_parts": np.array([2, TOKENS, HEADS, 3, SIZE]), "merged": np.array([2, TOKENS, -1]),
        "by_triples": np.array([2, TOKENS, HEADS, 3 * SIZE]), "rows": np.array([-1, K]),
        "halves": np.array([2, 2 * TOKENS, -1]), "doubled": np.array([TOKENS, -1]),
        "by_all": np.array([2, HEADS, -1, SIZE]), "as_batch": np.array([2 * HEADS, -1, SIZE]),
        "as_batch_p": np.array([2 * HEADS, TOKENS, -1]), "wide": np.array([2, TOKENS, 3 * K]),
        "five": np.array([1, 1, HEADS // GROUPS, 1, 1]), "two": np.array([2]),
        "thirds": np.array([K, K, K]), "twos": np.array([SIZE] * 3), "begin": np.array([0]),
        "late": np.array([2 * K + SIZE]),
        "one_k": np.array([K]), "two_k": np.array([2 * K]),
        "one_size": np.array([SIZE]), "two_sizes": np.array([2 * SIZE]), "minus": np.array([-1]),
        "less": np.array([-SIZE]), "less_two": np.array([-2]), "four_": np.array([4]),
        "one_": np.array([1]), "three": np.array([3]), "last": np.array([-1]),
        "last_row": np.array([[-1]]), "minus_one": np.array(-1),
        "by_fours": np.array([2, TOKENS, -1, 4, SIZE]),
        "repeated": np.array([2, TOKENS, 2, 2, SIZE]),
        "three_k": np.array([3 * K]), "end": np.array([1 << 40]),
        "index0": np.array(0), "index2": np.array(2), "zero": np.zeros((1, 1, 1, 1), np.float32),
        "old": np.array([2, HEADS, TOKENS, PAST]),
        "lengths": np.full(batch, PAST + TOKENS - 1, np.int32),
        "total": np.array(PAST + TOKENS, np.int32),
    }  # fmt: skip
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in arrays.items() if name in tokens}
    made = [f"float {name}" for name in ("o", "y", "present", "pk") if name in tokens]
    outputs = ", ".join(made)
    cache = f"float[{batch}, {GROUPS}, {PAST}, {SIZE}]"
    inputs = f"float[{batch}, {TOKENS}, {K}] x"
    inputs += "".join(f", {cache} {name}" for name in ("past_k", "past") if name in tokens)
    opset = 23 if "= Attention" in text else 18
    return build(
        f"g_ ({inputs}) => ({outputs}) {{ {text} }}",
        used,
        opset=opset,
        microsoft="GroupQuery" in text or "MultiHead" in text,
    )
