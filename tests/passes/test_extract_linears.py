"""Linears inside other ops are taken out, and the graph computes what it did."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.tiny_graphs import build, raw, run, weight

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.extract_linears import extract_linears

X3 = "float[B, S, 8] x"
H = 8


def attention(more: str = "", inputs: str = "x, W, b, mask", declared: str = "") -> str:
    return (
        f"g ({X3}, int32[B, S] mask{declared}) => (float[B, S, 8] y) {{"
        f" y = com.microsoft.Attention<num_heads = 2{more}>({inputs}) }}"
    )


W3 = {"W": (H, 3 * H), "b": (3 * H,)}
# (graph, weights by shape, linears found after)
TAKEN_OUT = {
    "attention with a mask": (attention(), W3, 1),
    "causal attention": (attention(", unidirectional = 1"), W3, 1),
    "attention without bias": (attention(inputs="x, W, , mask"), {"W": (H, 3 * H)}, 1),
    "attention with a scale": (attention(", scale = 0.3"), W3, 1),
    "a mask of lengths": (
        f"g ({X3}, int32[B] mask) => (float[B, S, 8] y)"
        " { y = com.microsoft.Attention<num_heads = 2>(x, W, b, mask) }",
        W3,
        1,
    ),
    "a mask of lengths of another input": (
        f"g ({X3}, int32[B] mask) => (float[B, S, 8] y) {{ h = MatMul(x, V)"
        " y = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(h, W, b, mask) }",
        {**W3, "V": (H, H)},
        2,
    ),
    "a mask of lengths, in numbers": (
        "g (float[2, S, 8] x, int32[2] mask) => (float[2, S, 8] y)"
        " { y = com.microsoft.Attention<num_heads = 2>(x, W, b, mask) }",
        W3,
        1,
    ),
    "a mask that is summed": (
        f"g ({X3}, int32[B, S] mask) => (float[B, S, 8] y)"
        " { n = ReduceSum<keepdims = 0>(mask, one) c = Cast<to = 6>(n)"
        " y = com.microsoft.Attention<num_heads = 2, mask_filter_value = -3.0e38>(x, W, b, c) }",
        W3,
        1,
    ),
    "embeddings that count the mask": (
        "g (int32[B, S] ids, int32[B, S] mask) => (float[B, S, 8] y)"
        " { x, n = com.microsoft.EmbedLayerNormalization(ids, , T, P, , g, h, mask)"
        " y = com.microsoft.Attention<num_heads = 2>(x, W, b, n) }",
        {**W3, "T": (9, H), "P": (6, H), "g": (H,), "h": (H,)},
        1,
    ),
    "a narrower value": (
        f"g ({X3}, int32[B, S] mask) => (float[B, S, 4] y) {{"
        " y = com.microsoft.Attention<num_heads = 2, qkv_hidden_sizes = [8, 8, 4]>"
        "(x, W, b, mask) }",
        {"W": (H, 20), "b": (20,)},
        1,
    ),
    "fused product, turned and scaled": (
        f"g ({X3}) => (float[B, S, 6] y)"
        " { y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.25>(x, W) }",
        {"W": (6, H)},
        1,
    ),
    "fused Gemm": (
        'g (float[B, 8] x) => (float[B, 6] y) { y = com.microsoft.FusedGemm<activation = "Relu",'
        " transB = 1, alpha = 2.0>(x, W, b) }",
        {"W": (6, H), "b": (6,)},
        1,
    ),
    "Gemm with factors": (
        "g (float[B, 8] x) => (float[B, 6] y)"
        " { y = Gemm<alpha = 0.5, beta = 3.0, transB = 1>(x, W, b) }",
        {"W": (6, H), "b": (6,)},
        1,
    ),
    "a weight of rank 3": (
        f"g ({X3}) => (float[B, S, 6] y) {{ y = MatMul(x, W) }}",
        {"W": (1, H, 6)},
        1,
    ),
    "Einsum": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "bsk,kn->bsn">(x, W) }}',
        {"W": (H, 6)},
        1,
    ),
    "Einsum, turned": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "bsk, nk -> bsn">(x, W) }}',
        {"W": (6, H)},
        1,
    ),
    "Einsum, dots": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "...k,kn->...n">(x, W) }}',
        {"W": (H, 6)},
        1,
    ),
    "Einsum, dots, turned": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "...i, oi -> ...o">(x, W) }}',
        {"W": (6, H)},
        1,
    ),
    "Einsum, dots in the middle": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "b...k,kn->b...n">(x, W) }}',
        {"W": (H, 6)},
        1,
    ),
    "Einsum, dots of the matrix that stand for nothing": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "bsk,...kn->bsn">(x, W) }}',
        {"W": (H, 6)},
        1,
    ),
    "Einsum, the matrix first": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "kn,bsk->bsn">(W, x) }}',
        {"W": (H, 6)},
        1,
    ),
    "Einsum, the matrix first, turned": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "nk,...k->...n">(W, x) }}',
        {"W": (6, H)},
        1,
    ),
    "Einsum, nothing said of what is kept": (
        f'g ({X3}) => (float[B, S, 6] y) {{ y = Einsum<equation = "abk,kz">(x, W) }}',
        {"W": (H, 6)},
        1,
    ),
}


@pytest.mark.parametrize("case", TAKEN_OUT)
def test_taken_out_and_the_same(rng: np.random.Generator, case: str) -> None:
    body, shapes, count = TAKEN_OUT[case]
    weights = {name: weight(rng, *shape) for name, shape in shapes.items()}
    arrays = weights | ({"one": np.array([1], np.int64)} if ", one)" in body else {})
    model = raw(body, arrays)
    feeds: dict[str, np.ndarray] = {"x": rng.standard_normal((2, 5, H)).astype(np.float32)}
    if "float[B, 8] x" in body:
        feeds["x"] = feeds["x"][0]
    if "ids" in body:
        feeds = {"ids": rng.integers(0, 9, (2, 5)).astype(np.int32)}
    if "int32[B, S] mask" in body:
        feeds["mask"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    elif "] mask" in body:
        feeds["mask"] = np.array([5, 3], np.int32)
    before = run(model, feeds)["y"]
    assert extract_linears(model).changed == 1
    assert len(find_linears(model).linears) == count
    assert not find_linears(model).others
    # One more rounding of each weight, and sums of 8 terms in another order.
    np.testing.assert_allclose(run(model, feeds)["y"], before, rtol=0, atol=2e-6)
    assert extract_linears(model).changed == 0


LEFT = {
    "attention with a past": (
        f"g ({X3}, float[2, B, 2, P, 4] past) => (float[B, S, 8] y, float[2, B, 2, T, 4] present)"
        " { y, present = com.microsoft.Attention<num_heads = 2, unidirectional = 1>"
        "(x, W, b, , past) }",
        {"W": (H, 3 * H), "b": (3 * H,)},
        "keeps its cache",
    ),
    "starts and ends of tokens": (
        f"g ({X3}, int32[C] mask) => (float[B, S, 8] y)"
        " { y = com.microsoft.Attention<num_heads = 2>(x, W, b, mask) }",
        W3,
        "whose mask is not known",
    ),
    "starts and ends, in numbers": (
        "g (float[2, S, 8] x, int32[4] mask) => (float[2, S, 8] y)"
        " { y = com.microsoft.Attention<num_heads = 2>(x, W, b, mask) }",
        W3,
        "whose mask is not known",
    ),
    "ends and starts joined": (
        f"g ({X3}, int32[B] e, int32[B] s) => (float[B, S, 8] y) {{ m = Concat<axis = 0>(e, s)"
        " y = com.microsoft.Attention<num_heads = 2>(x, W, b, m) }",
        W3,
        "whose mask is not known",
    ),
    "sums over the batch": (
        f"g ({X3}, int32[B, S] m) => (float[B, S, 8] y) {{ n = ReduceSum<keepdims = 0>(m, zero)"
        " y = com.microsoft.Attention<num_heads = 2>(x, W, b, n) }",
        W3,
        "whose mask is not known",
    ),
    "a weight for each of the batch": (
        "g (float[3, S, 8] x) => (float[3, S, 6] y) { y = MatMul(x, W) }",
        {"W": (3, H, 6)},
        "rank 3",
    ),
    "a weight of a higher rank than x": (
        "g (float[S, 8] x) => (float[1, S, 6] y) { y = MatMul(x, W) }",
        {"W": (1, H, 6)},
        "rank 3",
    ),
    "Einsum that sums heads": (
        "g (float[B, S, 2, 4] x) => (float[B, S, 6] y)"
        ' { y = Einsum<equation = "bshd,hdn->bsn">(x, W) }',
        {"W": (2, 4, 6)},
        "Einsum",
    ),
    "Einsum that keeps k": (
        f'g ({X3}) => (float[B, S, 8] y) {{ y = Einsum<equation = "bsk,kn->bsk">(x, W) }}',
        {"W": (H, 6)},
        "Einsum",
    ),
    "Einsum whose sorted letters turn the result": (
        f'g ({X3}) => (float[B, 6, S] y) {{ y = Einsum<equation = "bsk,kn">(x, W) }}',
        {"W": (H, 6)},
        "Einsum",
    ),
    "Einsum that turns the result": (
        f'g ({X3}) => (float[S, B, 6] y) {{ y = Einsum<equation = "bsk,kn->sbn">(x, W) }}',
        {"W": (H, 6)},
        "Einsum",
    ),
    "LSTM": (
        "g (float[S, B, 8] x) => (float[S, 1, B, 4] y) { y = LSTM<hidden_size = 4>(x, W, R) }",
        {"W": (1, 16, H), "R": (1, 16, 4)},
        "inside LSTM",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone_with_a_reason(rng: np.random.Generator, case: str) -> None:
    body, shapes, reason = LEFT[case]
    arrays = {name: weight(rng, *shape) for name, shape in shapes.items()}
    if ", zero)" in body:
        arrays["zero"] = np.array([0], np.int64)
    model = raw(body, arrays)
    before = [node.op_type for node in model.graph]
    assert extract_linears(model).changed == 0
    assert [node.op_type for node in model.graph] == before
    scan = find_linears(model)
    assert not scan.linears
    assert [reason in other.reason for other in scan.others] == [True], scan.others


def test_what_onnx_runtime_wrote_after_optimizing_is_found(
    rng: np.random.Generator, tmp_path
) -> None:
    """Its own FusedGemm and FusedMatMul, as a saved optimized model holds them."""
    model = build(
        "g (float[4, 8] x) => (float[4, 6] y, float[4, 6] z) { a = Gemm(x, W, b) y = Relu(a)"
        " s = MatMul(x, W) z = Mul(s, half) }",
        {"W": weight(rng, 8, 6), "b": weight(rng, 6), "half": np.array(0.5, np.float32)},
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    optimized = ir.load(tmp_path / "optimized.onnx")
    kinds = {node.op_type for node in optimized.graph}
    assert kinds & {"FusedGemm", "FusedMatMul"}, kinds
    extract_linears(optimized)
    assert len(find_linears(optimized).linears) == 2
    feeds = {"x": rng.standard_normal((4, 8)).astype(np.float32)}
    for name, value in run(model, feeds).items():
        np.testing.assert_allclose(run(optimized, feeds)[name], value, rtol=0, atol=2e-6)
