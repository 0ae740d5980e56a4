"""The MatMulNBits model, run by ONNX Runtime, against the dequantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.quantized import VARIANTS, Quantized, quantized, spelled
from support.tiny_graphs import FLOAT16_EPS, build, op_counts, product_bound, run, weight

from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.passes.emit_matmul_nbits import emit_matmul_nbits, pack_blocks
from fptq_onnx.scheme.plan import SKIP, STATIC


def rounding_bound(x: np.ndarray, w: np.ndarray, block: int) -> np.ndarray:
    """What int8 activations may cost: ONNX Runtime rounds each block of a row to max / 127.

    That moves every x by at most max / 254, so the output by at most max / 254 * sum|w| of that
    block; 2 % more for how the scale itself is rounded.
    """
    bound = np.zeros((x.shape[0], w.shape[1]))
    for start in range(0, w.shape[0], block):
        rows = slice(start, start + block)
        top = np.abs(x[:, rows]).max(axis=1, keepdims=True).astype(np.float64)
        bound += 1.02 * top / 254 * np.abs(w[rows]).sum(axis=0)
    return bound


def check(made: Quantized, x: np.ndarray) -> None:
    w = dequantize(made.weights())
    expected = x.reshape(-1, x.shape[-1]).astype(np.float64) @ w + made.bias()
    got = run(made.emitted(emit_matmul_nbits), {"x": x})["y"]
    assert got.shape == (*x.shape[:-1], made.linear.n)
    got = got.reshape(expected.shape)
    given = made.plan.linears[0].block_size
    rows = x.reshape(-1, x.shape[-1])
    bound = rounding_bound(rows, w, 256 if given == -1 else given) + product_bound(rows, w)
    bound += 2.0**-22 * np.abs(expected)
    # The bound must be able to fail: a wrong column or a wrong group is off by much more.
    assert bound.max() < 0.25 * np.abs(expected).max()
    assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_variant(
    rng: np.random.Generator, tmp_path: Path, variant: str, symmetric: bool
) -> None:
    made = quantized(
        spelled(rng, variant, 40, 6, opset=18), tmp_path, block_size=32, symmetric=symmetric
    )
    check(made, weight(rng, 5, 40))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [32, 64, 128, 256, -1])
@pytest.mark.parametrize("k", [688, 172, 7])
def test_blocks_and_tails(
    rng: np.random.Generator, tmp_path: Path, k: int, block_size: int, symmetric: bool
) -> None:
    model = spelled(rng, "matmul", k, 5, opset=18)
    made = quantized(model, tmp_path, block_size=block_size, symmetric=symmetric)
    check(made, weight(rng, 3, k))


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_any_rank(rng: np.random.Generator, tmp_path: Path, rank: int) -> None:
    made = quantized(spelled(rng, "matmul_bias", 40, 6, rank=rank), tmp_path)
    check(made, weight(rng, *(2, 1, 3)[: rank - 1], 40))


def test_float16(rng: np.random.Generator, tmp_path: Path) -> None:
    for variant in ("matmul_bias", "gemm_trans_b"):
        model = spelled(rng, variant, 40, 6, dtype="float16")
        made = quantized(model, tmp_path / variant, block_size=32)
        x = weight(rng, 5, 40, dtype="float16")
        w = dequantize(made.weights())
        expected = x.astype(np.float64) @ w + made.bias()
        bound = rounding_bound(x, w, 32)
        bound += product_bound(x, w, eps=FLOAT16_EPS) + 2 * FLOAT16_EPS * np.abs(made.bias())
        got = run(made.emitted(emit_matmul_nbits), {"x": x})["y"]
        assert (np.abs(got - expected) <= bound).all()


def test_the_op_says_what_it_is(rng: np.random.Generator, tmp_path: Path) -> None:
    made = quantized(spelled(rng, "gemm_trans_b", 172, 6), tmp_path)
    after = made.emitted(emit_matmul_nbits)
    node = after.graph.node(0)
    assert (len(after.graph), node.domain, node.op_type) == (1, "com.microsoft", "MatMulNBits")
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    assert values == {"K": 172, "N": 6, "bits": 4, "block_size": 128, "accuracy_level": 4}
    assert after.graph.initializers["y.W4"].const_value.nbytes == 6 * 2 * 64
    assert after.opset_imports["com.microsoft"] == 1
    assert not {"W", "WT"} & set(after.graph.initializers)


def test_a_matmuls_bias_stays_an_add(rng: np.random.Generator, tmp_path: Path) -> None:
    made = quantized(spelled(rng, "matmul_bias", 40, 6), tmp_path)
    assert op_counts(made.emitted(emit_matmul_nbits)) == {"MatMulNBits": 1, "Add": 1}


def test_linears_in_a_row_and_one_in_float(rng: np.random.Generator, tmp_path: Path) -> None:
    """Each reads the replacement of the one before it, not the removed original."""
    model = build(
        "g (float[A, 64] x) => (float[A, 6] y) {"
        " h = MatMul(x, W1) i = MatMul(h, W2) y = MatMul(i, W3) }",
        {"W1": weight(rng, 64, 48), "W2": weight(rng, 48, 40), "W3": weight(rng, 40, 6)},
    )
    made = quantized(model, tmp_path, schemes=[STATIC, STATIC, SKIP])
    after = made.emitted(emit_matmul_nbits)
    assert op_counts(after) == {"MatMulNBits": 2, "MatMul": 1}
    x = weight(rng, 3, 64)
    w1, w2 = dequantize(made.weights(0)), dequantize(made.weights(1))
    w3 = model.graph.initializers["W3"].const_value.numpy()
    h = x @ w1
    i = h @ w2
    # The error of each step, carried through the absolute values of the next.
    error = rounding_bound(x, w1, 128) + product_bound(x, w1)
    reach = np.abs(h) + error
    error = error @ np.abs(w2) + rounding_bound(reach, w2, 128) + product_bound(reach, w2)
    error = error @ np.abs(w3) + product_bound(np.abs(i) + error, w3)
    got = run(after, {"x": x})["y"]
    assert (np.abs(got - i @ w3) <= error).all()


def test_packing_by_hand() -> None:
    # K = 3 in one block of 4: codes 1 2 | 3 and a pad of 8 (symmetric) or the zero point.
    w = quantize_rtn(np.array([[-7], [0], [7]], np.float32), -1)
    assert w.codes[:, 0].tolist() == [1, 8, 15]
    assert pack_blocks(w, 4).tolist() == [[[0x81, 0x8F]]]
    w = quantize_rtn(np.array([[-3], [0], [12]], np.float32), -1, symmetric=False)
    assert w.codes[:, 0].tolist() == [0, 3, 15]
    assert pack_blocks(w, 4).tolist() == [[[0x30, 0x3F]]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [32, -1])
def test_zeros_stay_exact(
    rng: np.random.Generator, tmp_path: Path, symmetric: bool, block_size: int
) -> None:
    """A column of zeros gives 0, not what rounding leaves of its inputs' sum."""
    w = weight(rng, 96, 64)
    w[:, 3] = 0
    w[32:64, 5:40] = 0
    model = build("g (float[A, 96] x) => (float[A, 64] y) { y = MatMul(x, W) }", {"W": w})
    made = quantized(model, tmp_path, block_size=block_size, symmetric=symmetric)
    x = weight(rng, 7, 96)
    check(made, x)
    y = run(made.emitted(emit_matmul_nbits), {"x": x})["y"]
    assert (y[:, 3] == 0).all()
    assert np.abs(np.delete(y, 3, axis=1)).max(axis=0).min() > 0
