from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fptq_onnx.numerics.group_weights import PER_CHANNEL, GroupWeights, quantize_rtn
from fptq_onnx.numerics.matmul_w4a8 import fma, integer_parts, matmul_w4a8


def nearest_float32(exact: Fraction) -> np.float32:
    """The float32 nearest to a rational, half to even, by searching its two neighbours."""
    guess = np.float32(float(exact))
    candidates = [np.nextafter(guess, -np.inf), guess, np.nextafter(guess, np.inf)]
    finite = [value for value in candidates if np.isfinite(value)]

    def rank(value: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1

    return min(finite, key=rank)


def random_floats(rng: np.random.Generator, count: int, low: int, high: int) -> np.ndarray:
    mantissa = 1 + rng.integers(0, 2**23, count) / 2**23
    sign = rng.choice([-1, 1], count)
    return (sign * np.ldexp(mantissa, rng.integers(low, high, count))).astype(np.float32)


def test_fma_is_rounded_once(rng: np.random.Generator) -> None:
    count = 3000
    a, b = random_floats(rng, count, -20, 20), random_floats(rng, count, -20, 20)
    # The addend is near the product, or far below it, so that both cancellation and halfway cases
    # shifted by a tiny amount occur: those are where rounding twice goes wrong.
    shift = rng.integers(-60, 40, count)
    c = np.ldexp((a * b).astype(np.float32), shift.astype(np.int32)).astype(np.float32)
    c *= rng.choice(np.array([-1, 1], np.float32), count)
    got = fma(a, b, c)
    assert got.dtype == np.float32
    for i in range(count):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got[i] == nearest_float32(exact), (a[i], b[i], c[i])


def halfway_cases() -> list[tuple[float, float, float]]:
    e = 2.0**-12
    cases = []
    for sign in (1.0, -1.0):
        for tail in (2.0**-70, -(2.0**-70)):
            # (1 + e)**2 = 1 + 2e + e**2 and e**2 = 2**-24 is half an ulp of 1: a float64 sum with
            # 2**-70 loses it and leaves an exact tie, so only round-to-odd sees which way to go.
            cases.append((sign * (1 + e), 1 + e, tail))
            cases.append((sign * (1 + 3 * e), 1 + e, tail))
    return cases


@pytest.mark.parametrize(("a", "b", "c"), halfway_cases())
def test_fma_where_rounding_twice_would_be_wrong(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = fma(np.float32([a]), np.float32([b]), np.float32([c]))[0]
    assert got == nearest_float32(exact)


def test_those_cases_tell_the_two_apart() -> None:
    wrong = 0
    for a, b, c in halfway_cases():
        twice = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
        wrong += twice != nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
    assert wrong >= 2


def test_fma_in_the_subnormals_and_at_the_top() -> None:
    tiny, top = 2.0**-149, float(np.finfo(np.float32).max)
    cases = [(2.0**-75, 2.0**-75, tiny), (2.0**-75, 1.5 * 2.0**-75, 0.0), (tiny, 0.5, 0.0)]
    for a, b, c in cases:
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        assert fma(*(np.float32([x]) for x in (a, b, c)))[0] == nearest_float32(exact)
    assert fma(np.float32([top]), np.float32([2]), np.float32([0]))[0] == np.inf
    assert fma(np.float32([top]), np.float32([2]), np.float32([-top]))[0] == np.float32(top)


def test_fma_with_nan_infinity_and_signed_zero() -> None:
    a = np.array([np.nan, np.inf, 1, np.inf, 0, -0.0], np.float32)
    b = np.array([1, 1, 1, 0, 1, 1], np.float32)
    c = np.array([1, 1, -np.inf, 1, 0, -0.0], np.float32)
    with np.errstate(invalid="ignore"):
        got = fma(a, b, c)
    np.testing.assert_array_equal(got[:4], np.array([np.nan, np.inf, -np.inf, np.nan], np.float32))
    assert np.signbit(got[4:]).tolist() == [False, True]


def test_product_by_hand() -> None:
    # One column, groups of 2: codes 15 1 | 8 10, scales 0.5 and 2. x = 3 -4 | 100 5, scale 0.25.
    # acc  = 15*3 + 1*-4 = 41 | 8*100 + 10*5 = 850        rows = -1 | 105
    # acc - 8 rows = 49 | 10;  y = 49 * 0.5 + 10 * 2 = 44.5;  out = 44.5 * 0.25 + 1 = 12.125
    weights = GroupWeights(
        np.array([[15], [1], [8], [10]], np.uint8), np.array([[0.5], [2]], np.float32), None, 2
    )
    x8 = np.array([[3, -4, 100, 5]], np.int8)
    acc, rows = integer_parts(x8, weights)
    assert (acc.tolist(), rows.tolist()) == ([[[41]], [[850]]], [[-1], [105]])
    scale = np.array([0.25], np.float32)
    assert matmul_w4a8(x8, scale, weights).tolist() == [[11.125]]
    assert matmul_w4a8(x8, scale, weights, np.array([1], np.float32)).tolist() == [[12.125]]


def test_asymmetric_product_by_hand() -> None:
    # Zero points 15 | 0: acc - zero * rows = 41 + 15 = 56 | 850;  56 * 0.5 + 850 * 2 = 1728
    weights = GroupWeights(
        np.array([[15], [1], [8], [10]], np.uint8),
        np.array([[0.5], [2]], np.float32),
        np.array([[15], [0]], np.uint8),
        2,
    )
    x8 = np.array([[3, -4, 100, 5]], np.int8)
    assert matmul_w4a8(x8, np.array([1], np.float32), weights).tolist() == [[1728]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "block_size"), [(172, 128), (7, 32), (96, 32), (172, PER_CHANNEL)])
def test_product_against_rational_arithmetic(
    rng: np.random.Generator, k: int, block_size: int, symmetric: bool
) -> None:
    """An independent loop, one element at a time, exact between the roundings of the definition."""
    m, n = 3, 4
    x8 = rng.integers(-128, 128, (m, k)).astype(np.int8)
    weights = quantize_rtn(
        rng.standard_normal((k, n)).astype(np.float32), block_size, symmetric=symmetric
    )
    row_scale = rng.random(m).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    got = matmul_w4a8(x8, row_scale, weights, bias)
    length = k if block_size == PER_CHANNEL else block_size
    for i in range(m):
        for j in range(n):
            y = Fraction(0)
            for g, start in enumerate(range(0, k, length)):
                zero = 8 if weights.zero_points is None else int(weights.zero_points[g, j])
                total = sum(
                    int(x8[i, row]) * (int(weights.codes[row, j]) - zero)
                    for row in range(start, min(start + length, k))
                )
                y = total * Fraction(float(weights.scales[g, j])) + y
                y = Fraction(float(nearest_float32(y)))
            exact = y * Fraction(float(row_scale[i])) + Fraction(float(bias[j]))
            assert got[i, j] == nearest_float32(exact)


def test_nan_rows_stay_nan_and_leave_others_alone() -> None:
    weights = quantize_rtn(np.ones((4, 3), np.float32), PER_CHANNEL)
    x8 = np.array([[0, 0, 0, 0], [1, 0, 0, 0]], np.int8)
    out = matmul_w4a8(x8, np.array([np.nan, 1], np.float32), weights, np.zeros(3, np.float32))
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1], np.full(3, np.float32(7) * weights.scales[0, 0]))


def test_no_rows() -> None:
    weights = quantize_rtn(np.ones((4, 3), np.float32), PER_CHANNEL)
    out = matmul_w4a8(np.zeros((0, 4), np.int8), np.zeros(0, np.float32), weights)
    assert (out.shape, out.dtype) == ((0, 3), np.float32)
