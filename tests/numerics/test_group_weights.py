from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fptq_onnx.numerics.group_weights import (
    PER_CHANNEL,
    GroupWeights,
    are_half,
    dequantize,
    group_count,
    group_length,
    half_scales,
    quantize_rtn,
)

TINY = np.finfo(np.float32).tiny


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_groups() -> None:
    assert [group_count(k, 128) for k in (1, 127, 128, 129, 256, 688)] == [1, 1, 1, 2, 2, 6]
    assert group_count(688, PER_CHANNEL) == 1
    assert group_length(688, PER_CHANNEL) == 688
    assert group_length(688, 32) == 32


def test_symmetric_by_hand() -> None:
    # max|w| = 7, scale 1, code = rint(w) + 8; 0.5, 1.5, 2.5 round half to even.
    weights = quantize_rtn(column(-7, 0.5, 1.5, 2.5, -0.5, 6.4, 0, 3), PER_CHANNEL)
    assert weights.codes[:, 0].tolist() == [1, 8, 10, 10, 8, 14, 8, 11]
    assert weights.scales.tolist() == [[1.0]]
    assert weights.zero_points is None
    assert dequantize(weights)[:, 0].tolist() == [-7, 0, 2, 2, 0, 6, 0, 3]


def test_asymmetric_by_hand() -> None:
    # Range -3..12: scale 15 / 15 = 1, zero point 3, code = rint(w) + 3.
    weights = quantize_rtn(column(-3, 12, 0, 2.5, -1.5), PER_CHANNEL, symmetric=False)
    assert weights.codes[:, 0].tolist() == [0, 15, 3, 5, 1]
    assert weights.zero_points is not None
    assert weights.zero_points.tolist() == [[3]]
    assert dequantize(weights)[:, 0].tolist() == [-3, 12, 0, 2, -2]


def test_asymmetric_ranges_are_widened_to_hold_zero() -> None:
    # 10..15 becomes 0..15 (scale 1, zero 0); -15..-10 becomes -15..0 (scale 1, zero 15).
    w = np.array([[10, -10], [15, -15]], np.float32)
    weights = quantize_rtn(w, PER_CHANNEL, symmetric=False)
    assert weights.zero_points is not None
    assert weights.zero_points.tolist() == [[0, 15]]
    np.testing.assert_array_equal(dequantize(weights), w)


def test_groups_and_columns_have_their_own_scale() -> None:
    # Two groups of 2 rows, one short group of 1 row.
    w = np.array([[7, 14], [1, 2], [70, 0], [-10, 0.7], [3.5, -21]], np.float32)
    weights = quantize_rtn(w, 2)
    np.testing.assert_array_equal(
        weights.scales, np.array([[1, 2], [10, np.float16(0.7 / 7)], [0.5, 3]], np.float32)
    )
    assert weights.codes.tolist() == [[15, 15], [9, 9], [15, 8], [7, 15], [15, 1]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [688, 172, 7, 1])
@pytest.mark.parametrize("block_size", [32, 128, PER_CHANNEL])
def test_every_weight_is_within_half_a_step(
    rng: np.random.Generator, k: int, block_size: int, symmetric: bool
) -> None:
    n = 300  # more than one chunk of columns, and no multiple of it
    w = rng.standard_normal((k, n)).astype(np.float32) * np.float32(3) + np.float32(0.5)
    weights = quantize_rtn(w, block_size, symmetric=symmetric)
    groups = 1 if block_size == PER_CHANNEL else -(-k // block_size)
    assert weights.codes.shape == (k, n)
    assert weights.scales.shape == (groups, n)
    step = np.repeat(weights.scales, group_length(k, block_size), axis=0)[:k].astype(np.float64)
    error = np.abs(dequantize(weights).astype(np.float64) - w)
    # Half a step, plus the rounding of the quotient and of the product: 3 eps of at most 15 steps.
    # The scale is rounded to float16 before: 7 2^-11 of a step beyond the last code, less than half
    # a step. Asymmetric ranges may clip by the rounding of the zero point: half more.
    slack = 1 + 15 * 3 * 2 * 2.0**-23
    assert (error <= step * (0.5 if symmetric else 1.0) * slack).all()
    # The largest magnitude of each symmetric group is hit to float rounding.
    if symmetric:
        for g in range(groups):
            rows = slice(g * group_length(k, block_size), (g + 1) * group_length(k, block_size))
            codes = weights.codes[rows].astype(int) - 8
            assert (np.abs(codes).max(axis=0) == 7).all()


def test_scales_are_the_nearest_float16_in_its_normal_range() -> None:
    least, most = np.float32(2.0**-14), np.float32(65504)
    tie = np.float32(1 + 2.0**-11)  # between 1 and 1 + 2^-10: to even
    above = np.nextafter(tie, np.float32(2))
    beyond = [np.nextafter(least, np.float32(0)), np.nextafter(most, np.float32(1e9)), TINY]
    given = np.array([least, most, tie, above, 0.1, *beyond], np.float32)
    expected = [least, most, 1, 1 + 2.0**-10, np.float16(0.1), *beyond]
    np.testing.assert_array_equal(half_scales(given), np.array(expected, np.float32))
    assert are_half(half_scales(given[:5])) and not are_half(given[:5])
    # A float16, but not in the normal range: its last bits are fewer than 11.
    assert not any(are_half(half_scales(given[i : i + 1])) for i in (5, 6, 7))
    assert not are_half(np.array([1, 2.0**-15], np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_suit_the_rounded_scales(
    rng: np.random.Generator, symmetric: bool, bits: int
) -> None:
    w = rng.standard_normal((96, 40)).astype(np.float32)
    found = quantize_rtn(w, 32, symmetric=symmetric, bits=bits)
    assert are_half(found.scales)
    zeros = np.full(found.scales.shape, found.middle) if symmetric else found.zero_points
    steps, zeros = found.scales.repeat(32, axis=0), zeros.repeat(32, axis=0)
    nearest = np.clip(np.rint(w / steps) + zeros, 0, 2**bits - 1)
    np.testing.assert_array_equal(found.codes, nearest)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_and_subnormal_groups(symmetric: bool) -> None:
    w = np.array([[0, TINY / 4, 1], [0, -TINY / 4, 0]], np.float32)
    weights = quantize_rtn(w, PER_CHANNEL, symmetric=symmetric)
    zero = weights.zero_points[0] if weights.zero_points is not None else np.full(3, 8)
    assert weights.scales[0, :2].tolist() == [1, 1]
    np.testing.assert_array_equal(weights.codes[:, :2], np.broadcast_to(zero[:2], (2, 2)))
    np.testing.assert_array_equal(dequantize(weights)[:, :2], np.zeros((2, 2)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_floats_do_not_overflow(symmetric: bool) -> None:
    top = np.finfo(np.float32).max
    weights = quantize_rtn(column(top, -top, 0), PER_CHANNEL, symmetric=symmetric)
    assert np.isfinite(weights.scales).all()
    # Symmetric: steps of top / 7. Asymmetric: 2 top / 15, zero at rint(7.5) = 8, so -top is
    # code rint(-7.5) + 8 = 0 and top is rint(7.5) + 8 = 16, clipped to 15.
    expected = [15, 1, 8] if symmetric else [15, 0, 8]
    assert weights.codes[:, 0].tolist() == expected


def test_half_precision_weights_are_read_exactly(rng: np.random.Generator) -> None:
    w = rng.standard_normal((40, 5)).astype(np.float16)
    narrow, wide = quantize_rtn(w, 32), quantize_rtn(w.astype(np.float32), 32)
    np.testing.assert_array_equal(narrow.codes, wide.codes)
    np.testing.assert_array_equal(narrow.scales, wide.scales)


def test_dequantize_rounds_once() -> None:
    # (15 - 2) * 0.1f is exact in rational arithmetic; its nearest float32 is what we want.
    weights = GroupWeights(
        np.array([[15], [0]], np.uint8),
        np.array([[0.1]], np.float32),
        np.array([[2]], np.uint8),
        PER_CHANNEL,
    )
    exact = [Fraction(float(np.float32(0.1))) * step for step in (13, -2)]
    assert dequantize(weights)[:, 0].tolist() == [float(np.float32(float(x))) for x in exact]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = np.zeros((3, 300), np.float32)
    w[2, 299] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_rtn(w, 2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (1, 2, 3)])
def test_shapes_that_are_no_matrix_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        quantize_rtn(np.zeros(shape, np.float32), 2)


@pytest.mark.parametrize("block_size", [0, -2])
def test_impossible_blocks_are_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size"):
        quantize_rtn(np.zeros((2, 2), np.float32), block_size)
