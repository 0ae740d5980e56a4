"""The qdq model, run by ONNX Runtime, against the numerics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import VARIANTS, Quantized, activations, quantized, spelled
from support.tiny_graphs import FLOAT16_EPS, build, op_counts, product_bound, run, weight

from fptq_onnx.numerics.group_weights import dequantize
from fptq_onnx.numerics.int8 import quantize_per_token, quantize_static
from fptq_onnx.numerics.matmul_w4a8 import matmul_w4a8
from fptq_onnx.passes.emit_qdq import emit_qdq
from fptq_onnx.scheme.plan import PER_TOKEN, SKIP, STATIC


def rounded(x: np.ndarray, made: Quantized, index: int = 0) -> np.ndarray:
    """x through int8 and back, by the numerics, [rows, K]."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    entry = made.plan.linears[index]
    if entry.scheme == PER_TOKEN:
        codes, scales = quantize_per_token(rows)
    else:
        codes, scales = quantize_static(rows, np.float32(entry.input_scale))
    return (codes * scales[:, None]).astype(np.float32)


def check(made: Quantized, x: np.ndarray) -> None:
    w, bias = dequantize(made.weights()), made.bias()
    x_hat = rounded(x, made)
    expected = x_hat.astype(np.float64) @ w.astype(np.float64) + bias
    got = run(made.emitted(emit_qdq), {"x": x})["y"]
    assert got.shape == (*x.shape[:-1], made.linear.n)
    got = got.reshape(expected.shape)
    # x_hat and W are the same floats on both sides; a per-token product may differ by one rounding.
    bound = product_bound(x_hat, w, extra=4) + 2.0**-23 * (np.abs(expected) + np.abs(bias))
    assert (np.abs(got - expected) <= bound).all()
    # And so the qdq model agrees with the op of the custom target, whose 2 G roundings are fewer.
    codes, scales = (
        quantize_per_token(x.reshape(-1, x.shape[-1]))
        if made.plan.linears[0].scheme == PER_TOKEN
        else quantize_static(x.reshape(-1, x.shape[-1]), made.plan.linears[0].input_scale)
    )
    custom = matmul_w4a8(codes, scales, made.weights(), bias)
    assert (np.abs(got - custom) <= 2 * bound).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scheme", [STATIC, PER_TOKEN])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_variant(
    rng: np.random.Generator, tmp_path: Path, variant: str, scheme: str, symmetric: bool
) -> None:
    model = spelled(rng, variant, 40, 6)
    made = quantized(model, tmp_path, schemes=[scheme], block_size=32, symmetric=symmetric)
    check(made, activations(rng, (5, 40), 1 / 127))


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, -1])
@pytest.mark.parametrize("k", [172, 7, 128])
@pytest.mark.parametrize("variant", ["matmul", "gemm_trans_b"])
def test_blocks_and_tails(
    rng: np.random.Generator, tmp_path: Path, variant: str, k: int, block_size: int
) -> None:
    for symmetric in (True, False):
        made = quantized(
            spelled(rng, variant, k, 5),
            tmp_path / str(symmetric),
            block_size=block_size,
            symmetric=symmetric,
        )
        check(made, activations(rng, (3, k), 1 / 127))


@pytest.mark.parametrize("scheme", [STATIC, PER_TOKEN])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_any_rank(rng: np.random.Generator, tmp_path: Path, rank: int, scheme: str) -> None:
    made = quantized(spelled(rng, "matmul_bias", 40, 6, rank=rank), tmp_path, schemes=[scheme])
    check(made, activations(rng, (*(2, 1, 3)[: rank - 1], 40), 1 / 127))


def test_rows_of_zeros_and_of_very_different_size(rng: np.random.Generator, tmp_path: Path) -> None:
    made = quantized(spelled(rng, "matmul", 40, 6), tmp_path, schemes=[PER_TOKEN])
    x = np.zeros((3, 40), np.float32)
    x[1] = np.linspace(-1e-20, 1e-20, 40)
    x[2] = np.linspace(-3e4, 1e4, 40)
    check(made, x)


def test_float16(rng: np.random.Generator, tmp_path: Path) -> None:
    for scheme in (STATIC, PER_TOKEN):
        model = spelled(rng, "matmul_bias", 40, 6, dtype="float16")
        made = quantized(model, tmp_path / scheme, schemes=[scheme], block_size=32)
        x = activations(rng, (5, 40), 1 / 127).astype(np.float16)
        x_hat, w = rounded(x, made), dequantize(made.weights())
        expected = x_hat.astype(np.float64) @ w + made.bias()
        # The activation's scale and the weights' scales are rounded to float16, the products of
        # code and scale too (4 half-ulps); a scale off by half an ulp also moves a code of 127 by
        # 0.03, so values within that of a tie, up to one in 16, may fall to the other code.
        one_step = np.abs(x_hat).max() / 127 * np.abs(w).sum(axis=0)
        bound = product_bound(x_hat, w, eps=FLOAT16_EPS, extra=4) + one_step / 16 + FLOAT16_EPS
        got = run(made.emitted(emit_qdq), {"x": x})["y"]
        assert (np.abs(got - expected) <= bound).all()


def test_consumers_of_one_activation_share_its_rounding(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model = build(
        "g (float[A, 40] x) => (float[A, 6] y, float[A, 5] z, float[A, 4] u) {"
        " y = MatMul(x, W1) z = MatMul(x, W2) u = MatMul(x, W3) }",
        {"W1": weight(rng, 40, 6), "W2": weight(rng, 40, 5), "W3": weight(rng, 40, 4)},
        opset=21,
        ir_version=10,
    )
    made = quantized(model, tmp_path, schemes=[STATIC, STATIC, SKIP])
    after = made.emitted(emit_qdq)
    assert op_counts(after) == {"QuantizeLinear": 1, "DequantizeLinear": 3, "MatMul": 3}
    x = activations(rng, (3, 40), 1 / 127)
    got = run(after, {"x": x})
    for index, name in enumerate("yz"):
        w, x_hat = dequantize(made.weights(index)), rounded(x, made, index)
        assert (np.abs(got[name] - x_hat @ w) <= 2 * product_bound(x_hat, w)).all()
    np.testing.assert_array_equal(got["u"], run(model, {"x": x})["u"])


def test_linears_in_a_row(rng: np.random.Generator, tmp_path: Path) -> None:
    model = build(
        "g (float[A, 40] x) => (float[A, 6] y) { h = MatMul(x, W1) y = MatMul(h, W2) }",
        {"W1": weight(rng, 40, 8), "W2": weight(rng, 8, 6)},
        opset=21,
        ir_version=10,
    )
    made = quantized(model, tmp_path, {"h": np.full(8, 100)}, schemes=[PER_TOKEN, PER_TOKEN])
    x = activations(rng, (3, 40), 1 / 127)
    h = rounded(x, made) @ dequantize(made.weights(0))
    codes, scales = quantize_per_token(h)
    expected = matmul_w4a8(codes, scales, made.weights(1))
    got = run(made.emitted(emit_qdq), {"x": x})["y"]
    # One code of h may fall on the other side of a tie: one step of one row's scale.
    step = scales[:, None] * np.abs(dequantize(made.weights(1))).max(axis=0)
    assert (np.abs(got - expected) <= 1.01 * step).all()


def test_weights_are_stored_in_four_bits(rng: np.random.Generator, tmp_path: Path) -> None:
    for symmetric, kind in ((True, ir.DataType.INT4), (False, ir.DataType.UINT4)):
        folder = tmp_path / str(symmetric)
        made = quantized(spelled(rng, "matmul", 40, 6), folder, symmetric=symmetric)
        after = made.emitted(emit_qdq)
        codes = after.graph.initializers["y.W4"].const_value
        assert (codes.dtype, codes.nbytes) == (kind, 120)
        assert "W" not in after.graph.initializers
    made = quantized(spelled(rng, "matmul", 40, 6, opset=21), tmp_path / "old")
    made.model.ir_version = 8
    assert made.emitted(emit_qdq).ir_version == 10  # int4 needs it


def test_extended_optimization_gives_the_same(rng: np.random.Generator, tmp_path: Path) -> None:
    """Fusions of Q/DQ must not change the meaning: nothing is lost by ONNX Runtime's defaults."""
    made = quantized(spelled(rng, "matmul_bias", 172, 6), tmp_path)
    x = activations(rng, (3, 172), 1 / 127)
    after = made.emitted(emit_qdq)
    plain, fused = run(after, {"x": x})["y"], run(after, {"x": x}, optimize=True)["y"]
    bound = product_bound(rounded(x, made), dequantize(made.weights())) + 2.0**-22
    assert (np.abs(plain - fused) <= 2 * bound).all()
