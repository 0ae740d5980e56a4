"""fptq::MatMulW4A8 in ONNX Runtime against its definition in NumPy: every bit, no tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from fptq_onnx.numerics.panels import pack_codes, pack_group_values

SHAPES = [(1, 1), (7, 5), (8, 64), (63, 65), (65, 63), (172, 688), (688, 172), (256, 128)]


@pytest.mark.parametrize("k, n", SHAPES)
@pytest.mark.parametrize("block", [8, 32, 64, 128, 256, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_shapes_and_blocks(
    op: Any, activations: Any, each_kernel: str, k: int, n: int, block: int, symmetric: bool
) -> None:
    scale_dtype = np.float16 if (k + block) % 2 else np.float32
    node = op.make_node(k, n, block, symmetric=symmetric, bias=n % 2 == 1, scale_dtype=scale_dtype)
    op.assert_exact(node, activations((5, k)))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 12, 13, 193, 400])
@pytest.mark.parametrize("a_scale", [None, 0.03])
def test_number_of_rows(
    op: Any, activations: Any, each_kernel: str, m: int, a_scale: float | None
) -> None:
    node = op.make_node(172, 130, 32, symmetric=False, bias=True, a_scale=a_scale)
    op.assert_exact(node, activations((m, 172)))


@pytest.mark.parametrize("a_scale", [None, 0.03])
@pytest.mark.parametrize("bias", [True, False])
def test_float16(
    op: Any, activations: Any, each_kernel: str, a_scale: float | None, bias: bool
) -> None:
    node = op.make_node(172, 75, 64, bias=bias, a_scale=a_scale, dtype=np.float16)
    x = activations((7, 172), np.float16)
    x[1] = np.ldexp(1.0, -24) * np.arange(172)  # subnormal in float16
    x[2] *= 1000  # outputs beyond 65504 become infinite
    with np.errstate(over="ignore"):
        op.assert_exact(node, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gate", ["", "silu"])
@pytest.mark.parametrize("m", [1, 2, 5, 7, 40, 200])
def test_float16_scales(
    op: Any, activations: Any, each_kernel: str, m: int, gate: str, bits: int, dtype: Any
) -> None:
    """The bits of float32 scales of the same values, which are those of the definition."""
    node = op.make_node(
        300, 140, 32, symmetric=m % 2 == 0, bias=True, dtype=dtype, bits=bits, parts=(70, 70),
        gate=gate, scale_dtype=np.float16,
    )  # fmt: skip
    scales = node.constants["scales"]
    assert scales.dtype == np.float16
    x = activations((m, 300), dtype)
    op.assert_exact(node, x)
    wide = node.with_constant("scales", scales.astype(np.float32))
    op.assert_exact(wide, x)


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (2, 1, 3, 40), (1, 2, 1, 3, 40)])
def test_rank(op: Any, activations: Any, shape: tuple[int, ...]) -> None:
    node = op.make_node(40, 70, 16, a_shape=shape)
    op.assert_exact(node, activations(shape))


@pytest.mark.parametrize("shape", [(0, 40), (2, 0, 40)])
def test_no_rows(op: Any, shape: tuple[int, ...]) -> None:
    node = op.make_node(40, 70, 16, a_shape=(*tuple("abc"[: len(shape) - 1]), 40))
    op.assert_exact(node, np.zeros(shape, np.float32))


@pytest.mark.parametrize("a_scale", [None, 0.05])
def test_rows_without_an_int8_form(op: Any, each_kernel: str, a_scale: float | None) -> None:
    node = op.make_node(100, 70, 32, symmetric=False, bias=True, a_scale=a_scale)
    x = np.random.default_rng(3).normal(size=(9, 100)).astype(np.float32)
    x[0, 99] = np.nan  # in the tail of K
    x[1, 0] = -np.nan
    x[2, 50] = np.inf
    x[3, 51] = -np.inf
    x[4] = 0
    x[5] = -0.0
    x[6] *= np.float32(1e-38)  # the per-token scale would be subnormal
    x[7] = np.finfo(np.float32).max
    op.assert_exact(node, x)
    (y,) = op.open_session(node).run(None, {"A": x})
    assert np.isnan(y[0]).all() and np.isnan(y[1]).all()
    assert np.isfinite(y[[4, 5, 6, 8]]).all()


def test_every_code_from_minus_128_to_127(op: Any, each_kernel: str) -> None:
    # Static scale 1 makes x its own code; the largest sums a group of 256 can have occur.
    node = op.make_node(256, 64, 256, a_scale=1.0)
    codes = node.weights.codes
    codes[:, 0], codes[:, 1] = 0, 15
    node = node.with_constant("B", pack_codes(codes))
    x = np.stack([np.arange(-128, 128), np.full(256, -128), np.full(256, 127)]).astype(np.float32)
    op.assert_exact(node, x)
    op.assert_exact(node, x * 1000)  # saturation


def test_halves_round_to_even(op: Any, each_kernel: str) -> None:
    node = op.make_node(8, 1, 8, a_scale=1.0)
    op.assert_exact(node, np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.5]], np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_infinite_and_huge_scales(op: Any, each_kernel: str, activations: Any, dtype: Any) -> None:
    node = op.make_node(64, 64, 32, scale_dtype=dtype)
    half = dtype is np.float16
    node.weights.scales[0, 0] = np.inf
    node.weights.scales[1, 1] = np.nan
    node.weights.scales[:, 2] = 65504 if half else 1e37  # overflows
    node.weights.scales[:, 3] = 2.0**-24 if half else 1e-42  # subnormal
    node = node.with_constant("scales", pack_group_values(node.weights.scales).astype(dtype))
    op.assert_exact(node, activations((4, 64)))


@pytest.mark.parametrize("bias", [True, False])
def test_absent_zero_points_mean_8(op: Any, activations: Any, bias: bool) -> None:
    if bias and ort_version() < (1, 24):
        pytest.skip("this ONNX Runtime crashes on an absent input before the last one")
    node = op.make_node(64, 20, 32, bias=bias).with_constant("zero_points", None)
    op.assert_exact(node, activations((3, 64)))


def test_a_group_too_long_for_int16_pairs(op: Any, each_kernel: str) -> None:
    # Saturation in 16 bits anywhere would show: all products have the largest magnitude.
    node = op.make_node(4096, 3, -1, a_scale=1.0)
    node.weights.codes[:] = 15
    node = node.with_constant("B", pack_codes(node.weights.codes))
    for rows in (1, 2, 3, 4, 20):
        op.assert_exact(node, np.full((rows, 4096), -128, np.float32))


def test_groups_longer_than_what_a_kernel_unpacks_at_once(
    op: Any, activations: Any, each_kernel: str
) -> None:
    for block in (296, 1024, -1):
        node = op.make_node(1400, 70, block, symmetric=False)
        op.assert_exact(node, activations((20, 1400)))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("m", [1, 30, 500])
def test_threads(op: Any, activations: Any, threads: int, m: int) -> None:
    node = op.make_node(300, 700, 32, symmetric=False)
    op.assert_exact(node, activations((m, 300)), threads=threads)


def ort_version() -> tuple[int, ...]:
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 7, 33])
@pytest.mark.parametrize(("k", "n", "block"), [(7, 3, -1), (172, 70, 32), (300, 130, 128)])
def test_8_bit_weights(
    op: Any,
    each_kernel: str,
    activations: Any,
    k: int,
    n: int,
    block: int,
    rows: int,
    symmetric: bool,
    dtype: Any,
) -> None:
    node = op.make_node(k, n, block, symmetric=symmetric, bias=True, dtype=dtype, bits=8)
    op.assert_exact(node, activations((rows, k), dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("parts", [(70, 6, 64), (64, 64), (1, 1, 1, 200)])
def test_several_linears_of_one_input(
    op: Any, each_kernel: str, activations: Any, parts: tuple[int, ...], rows: int, bits: int
) -> None:
    for threads, seed in ((1, 0), (3, 1)):
        node = op.make_node(
            88, sum(parts), 32, symmetric=False, bias=True, bits=bits, parts=parts, seed=seed
        )
        op.assert_exact(node, activations((rows, 88)), threads)


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows", [1, 9, 130])
@pytest.mark.parametrize("n", [1, 70, 192])
def test_gate(
    op: Any, each_kernel: str, activations: Any, n: int, rows: int, dtype: Any, gate: str
) -> None:
    node = op.make_node(72, 2 * n, 32, bias=True, dtype=dtype, parts=(n, n), gate=gate)
    op.assert_exact(node, activations((rows, 72), dtype), threads=2)
