from __future__ import annotations

import numpy as np
import pytest
from support.output_errors import correlated, weighted_error

from fptq_onnx.numerics import clip_search
from fptq_onnx.numerics.clip_search import RATIOS, quantize_mse, round_codes, search_grid
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn

K, N = 40, 30
BLOCKS = (8, 16, -1)


@pytest.fixture
def w(rng: np.random.Generator) -> np.ndarray:
    """Heavy tails: some groups gain by clipping, others do not."""
    return rng.standard_t(3, (K, N)).astype(np.float32)


@pytest.fixture
def importance(rng: np.random.Generator) -> np.ndarray:
    return np.square(correlated(rng, 200, K), dtype=np.float64).mean(axis=0)


def brute_force(
    w: np.ndarray, importance: np.ndarray, block: int, *, symmetric: bool, bits: int
) -> np.ndarray:
    """The least error of each group [G, N]: every ratio, every code tried one by one, float64."""
    largest, length = 2**bits - 1, len(w) if block == -1 else block
    levels = np.arange(largest + 1, dtype=np.float64)
    best = []
    for start in range(0, len(w), length):
        rows = w[start : start + length]
        low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0)
        half, top = (largest + 1) // 2, np.float32(largest)
        full = (
            np.maximum(-low, high) / np.float32(half - 1) if symmetric else high / top - low / top
        )
        zero = np.full(w.shape[1], half)
        if not symmetric:
            zero = np.rint(-low / full.astype(np.float16).astype(np.float32)).astype(int)
        errors = []
        for ratio in RATIOS:
            scale = (full * np.float32(ratio)).astype(np.float16).astype(np.float64)
            values = (levels[:, None] - zero) * scale  # [levels, N]
            nearest = np.square(rows[:, None].astype(np.float64) - values).min(axis=1)
            errors.append((importance[start : start + length, None] * nearest).sum(axis=0))
        best.append(np.min(errors, axis=0))
    return np.array(best)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_best_of_all_ratios_with_the_nearest_codes(
    w: np.ndarray, importance: np.ndarray, block: int, symmetric: bool
) -> None:
    found = quantize_mse(w, importance, block, symmetric=symmetric)
    got = weighted_error(found, w, importance)
    expected = brute_force(w, importance, block, symmetric=symmetric, bits=4)
    # Ratios whose errors differ by less than the rounding of their float32 sums, K 2^-24, are even.
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert found.codes.dtype == np.uint8 and found.codes.max() <= 15
    assert (found.zero_points is None) == symmetric


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_never_worse_than_round_to_nearest(
    w: np.ndarray, importance: np.ndarray, block: int, symmetric: bool, bits: int
) -> None:
    """Guaranteed in each group: the full range is among the ratios, and has all codes of RTN."""
    nearest = quantize_rtn(w, block, symmetric=symmetric, bits=bits)
    found = quantize_mse(w, importance, block, symmetric=symmetric, bits=bits)
    before, after = (weighted_error(q, w, importance) for q in (nearest, found))
    assert (after <= before * (1 + 1e-5)).all()
    if bits == 4:
        assert (after < 0.95 * before).mean() > 0.2  # and the search is of use
    else:
        np.testing.assert_array_equal(found.scales, nearest.scales)


def test_importance_decides_which_weights_are_clipped() -> None:
    w = np.full((8, 2), 0.9, np.float32)
    w[0] = 3.0
    careless, careful = np.ones(8), np.ones(8)
    careless[0], careful[0] = 1e-6, 1e6
    clipped, _ = search_grid(w, careless, -1)
    kept, _ = search_grid(w, careful, -1)
    assert clipped[0, 0] < 0.9 * 3 / 7
    full = dequantize(quantize_mse(w, careful, -1))
    # A weight of importance 1e6 beside seven of 1 keeps its value to within 7 * 0.3^2 / 1e6.
    assert abs(full[0, 0] - 3.0) <= np.sqrt(7 * 0.3**2 / 1e6)
    assert kept[0, 0] > clipped[0, 0]


def test_the_outermost_code_is_used_on_both_sides() -> None:
    """-8 stands for a value that a range of +-7 steps leaves out."""
    w = np.array([[-8.0], [7.0], [3.0], [1.0]], np.float32)
    found = quantize_mse(w, np.ones(4), -1)
    assert found.codes.min() == 0
    # Ratio 0.88 is the nearest to 7 / 8: steps of 0.88 * 8 / 7.
    np.testing.assert_array_equal(found.scales, np.float32(np.float16(0.88 * 8 / 7)))


def test_the_first_ratio_wins_ties() -> None:
    zeros = np.zeros((4, 3), np.float32)
    scales, middle = search_grid(zeros, np.ones(4), -1)
    np.testing.assert_array_equal(scales, 1)  # an all-zero group
    np.testing.assert_array_equal(middle, 8)
    grid = np.array([[7.0, -7.0], [-3.0, 2.0]], np.float32)  # exact at the full range
    scales, _ = search_grid(grid, np.ones(2), -1)
    np.testing.assert_array_equal(scales, 1)
    # Where what counts is 0, every ratio has no error.
    scales, _ = search_grid(np.array([[0.0], [7.0]], np.float32), np.array([1.0, 0.0]), -1)
    np.testing.assert_array_equal(scales, 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_groups_stay_zero(symmetric: bool) -> None:
    w = np.zeros((8, 3), np.float32)
    w[:4, 1] = 1
    found = quantize_mse(w, np.ones(8), 4, symmetric=symmetric)
    np.testing.assert_allclose(dequantize(found), w, rtol=2.0**-11)  # the scale is a float16
    assert (dequantize(found)[4:] == 0).all() and (dequantize(found)[:, 0] == 0).all()


def test_dead_groups_are_searched_as_if_all_rows_counted(w: np.ndarray) -> None:
    importance = np.ones(K)
    importance[8:16] = 0
    scales, _ = search_grid(w, importance, 8)
    alike, _ = search_grid(w, np.ones(K), 8)
    np.testing.assert_array_equal(scales, alike)


@pytest.mark.parametrize("size", [1e-60, 1e-12, 1e30, 1e60])
def test_only_relative_importance_counts(
    w: np.ndarray, importance: np.ndarray, size: float
) -> None:
    some, _ = search_grid(w, importance, 8)
    scaled, _ = search_grid(w, importance * size, 8)
    # One rounding of the shares may differ: even ratios may win instead, of steps of 2 %.
    assert (scaled == some).mean() > 0.99


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 3e37])
def test_weights_of_any_size(w: np.ndarray, importance: np.ndarray, size: float) -> None:
    """Squared errors beyond float32 or below it leave the full range: the scale of RTN."""
    big = (w / np.abs(w).max() * size).astype(np.float32)
    scales, _ = search_grid(big, importance, 8)
    full = quantize_rtn(big, 8).scales
    assert (scales <= full).all() and (scales > 0.55 * full).all()


def test_columns_are_independent_of_their_chunk(
    w: np.ndarray, importance: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search_grid(w, importance, 8, symmetric=False)
    monkeypatch.setattr(clip_search, "_COLUMN_CHUNK", 7)
    parts = search_grid(w, importance, 8, symmetric=False)
    for a, b in zip(whole, parts, strict=True):
        # The sums of a chunk may be added in another order; ratios that are even may change.
        assert (a == b).mean() > 0.99


def test_codes_are_rounded_to_even_and_clipped() -> None:
    w = np.array([[-99.0], [-0.5], [0.5], [1.5], [99.0]], np.float32)
    one, zero = np.ones(1, np.float32), np.full(1, 3, np.float32)
    np.testing.assert_array_equal(round_codes(w, one, zero, 4)[:, 0], [0, 3, 3, 5, 15])
    np.testing.assert_array_equal(round_codes(w, one / 2, zero, 8)[:, 0], [0, 2, 4, 6, 201])


@pytest.mark.parametrize("bad", [np.ones(K + 1), -np.ones(K), np.full(K, np.nan), np.ones((K, 1))])
def test_importance_that_makes_no_sense(w: np.ndarray, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance must be one finite number"):
        search_grid(w, bad, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(w: np.ndarray, bad: float) -> None:
    w[17, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_mse(w, np.ones(K), 8)
