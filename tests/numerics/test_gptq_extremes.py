"""GPTQ where inputs say little or nothing, what it refuses, and what memory it takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from support.output_errors import (
    correlated,
    damped,
    least_squares_target,
    moments_of,
    quadratic_error,
)

from fptq_onnx.numerics import cholesky as upper_cholesky
from fptq_onnx.numerics import gptq, hessian
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.gptq import DAMPING, quantize_gptq
from fptq_onnx.numerics.group_weights import dequantize
from fptq_onnx.numerics.hessian import Hessian

K, N = 48, 12


@pytest.fixture
def w(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((K, N)).astype(np.float32)


def test_dead_channels_are_rounded_alone(rng: np.random.Generator, w: np.ndarray) -> None:
    """Channels that are always 0, a whole group of them too: no error of others is put there."""
    x = correlated(rng, 300, K)
    dead = np.r_[3, 16:32, 40]
    x[:, dead] = 0
    moments = moments_of(x)
    found = quantize_gptq(w, moments, 16)
    assert np.isfinite(found.scales).all() and (found.scales > 0).all()
    # A dead channel has only damping on its own: nearest to its weight, whatever the others do.
    e = np.abs(w - dequantize(found))
    group = np.arange(K) // 16
    within = (found.codes > 0) & (found.codes < 15)
    half = found.scales[group] / 2
    assert (e <= half * (1 + 1e-5))[dead][within[dead]].all()
    alive = np.setdiff1d(np.arange(K), dead)
    h = damped(moments, DAMPING)
    mse = quadratic_error(quantize_mse(w, np.diag(h), 16), w, h).sum()
    assert quadratic_error(found, w, h).sum() < mse
    assert len(alive) == 30


def test_fewer_tokens_than_channels(rng: np.random.Generator, w: np.ndarray) -> None:
    """H of rank 5: damping makes it regular, and the outputs are met nearly exactly."""
    x = correlated(rng, 5, K)
    found = quantize_gptq(w, moments_of(x), 16)
    want = x.astype(np.float64) @ w
    mse = quantize_mse(w, np.square(x, dtype=np.float64).mean(axis=0), 16)
    got, coarse = (np.square(want - x @ dequantize(q)).sum() for q in (found, mse))
    assert got < 0.05 * coarse


def test_a_float_input_of_low_rank_pulls_no_further_than_the_data(
    rng: np.random.Generator, w: np.ndarray
) -> None:
    x = correlated(rng, 5, K)
    x8 = x + np.float32(0.1) * correlated(rng, 5, K)
    moments = moments_of(x8, x)
    added = DAMPING * float(np.trace(moments.xx)) / K
    target = least_squares_target(x8, x, w, added)
    found = quantize_gptq(w, moments, 8, bits=8, rounds=0)
    # 8 bits in groups of 8 miss the target by less than a few steps; W is further away.
    steps = found.scales.repeat(8, axis=0)
    assert (np.abs(dequantize(found) - target) < 4 * steps).all()
    assert (np.abs(w - target) > 4 * steps).any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_zeros(rng: np.random.Generator, w: np.ndarray, symmetric: bool) -> None:
    w[16:32] = 0
    w[:, 5] = 0
    found = quantize_gptq(w, moments_of(correlated(rng, 300, K)), 16, symmetric=symmetric)
    assert np.isfinite(found.scales).all() and (found.scales > 0).all()
    assert (dequantize(found)[:, 5] == 0).all()
    assert (dequantize(found)[16:32] == 0).all()  # steps of 1, and corrections below half of that


def test_the_last_group_may_be_shorter(rng: np.random.Generator, w: np.ndarray) -> None:
    found = quantize_gptq(w, moments_of(correlated(rng, 300, K)), 20)
    assert found.scales.shape == (3, N) and found.codes.shape == (K, N)
    assert np.abs(w - dequantize(found)).max() < 1.5


def test_one_channel_and_one_token() -> None:
    moments = Hessian(np.full((1, 1), 4.0), None, 1)
    found = quantize_gptq(np.array([[0.7, -1.4]], np.float32), moments, 32)
    np.testing.assert_allclose(dequantize(found), [[0.7, -1.4]], rtol=2.0**-11)  # float16 scales


def test_a_fortran_ordered_weight_and_the_arguments_stay(
    rng: np.random.Generator, w: np.ndarray
) -> None:
    x = correlated(rng, 300, K)
    moments = moments_of(x, x + np.float32(0.1))
    assert moments.x_float is not None
    before = w.tobytes(), moments.xx.tobytes(), moments.x_float.tobytes()
    one = quantize_gptq(w, moments, 16)
    other = quantize_gptq(np.asfortranarray(w), moments, 16)
    np.testing.assert_array_equal(one.codes, other.codes)
    assert before == (w.tobytes(), moments.xx.tobytes(), moments.x_float.tobytes())


def test_sums_in_float32_give_nearly_the_same(
    rng: np.random.Generator, w: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = correlated(rng, 500, K)
    x8 = x + np.float32(0.1) * correlated(rng, 500, K)
    moments = moments_of(x8, x)
    monkeypatch.setattr(hessian, "_FLOAT64_CHANNELS", K - 1)
    short = moments_of(x8, x)
    assert short.xx.dtype == np.float32
    before = short.xx.tobytes()
    a, b = quantize_gptq(w, moments, 16), quantize_gptq(w, short, 16)
    assert (a.codes != b.codes).mean() < 0.02
    assert short.xx.tobytes() == before  # there is no copy of it that damping could be added to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moments": Hessian.empty(K + 1)}, "moments of 49 channels for a weight of 48"),
        ({"moments": Hessian(np.eye(K), None, 0)}, "at least one token"),
        ({"moments": Hessian(np.zeros((K, K)), None, 9)}, "the inputs are zero"),
        ({"damping": 0.0}, "a positive damping"),
        ({"damping": float("nan")}, "a positive damping"),
        ({"bits": 5}, "bits must be 4 or 8"),
        ({"block_size": 0}, "block_size must be positive"),
        ({"w": np.full((K, N), np.inf, np.float32)}, "NaN or infinity"),
    ],
)
def test_refused(w: np.ndarray, change: dict, message: str) -> None:
    given = {"w": w, "moments": Hessian(np.eye(K), None, 9), "block_size": 16, **change}
    with pytest.raises(ValueError, match=message):
        quantize_gptq(**given)


@pytest.mark.parametrize("bad", [-1e9, np.nan])
def test_moments_that_are_none(w: np.ndarray, bad: float) -> None:
    """Not positive definite, or NaN off the diagonal."""
    xx = np.eye(K)
    xx[3, 4] = xx[4, 3] = bad
    with pytest.raises(np.linalg.LinAlgError):
        quantize_gptq(w, Hessian(xx, None, 9), 16)


def test_a_scale_never_vanishes_or_changes_its_sign() -> None:
    """A code on the wrong side: where the best scale is negative it stays, the code is to move."""
    wanted = np.array([[-1.0, 0.3, 0.7, 3.0]], np.float32)
    scale, q = np.ones(4, np.float32), np.ones((1, 4), np.float32)
    error = wanted - scale
    h = gptq._Damped(np.ones((1, 1), np.float32), np.float32(0.5))
    gradient = h.times(slice(0, 1), error)
    scale += gptq._refit_scale(h, slice(0, 1), q, scale, gradient, error)
    np.testing.assert_array_equal(scale, np.array([1, 1, np.float16(0.7), 3], np.float32))
    np.testing.assert_allclose(error, wanted - scale, atol=1e-6)
    np.testing.assert_allclose(gradient, h.times(slice(0, 1), error), atol=1e-6)


@pytest.mark.parametrize("many", [False, True])
def test_memory_is_what_the_docstring_says(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """One [K, K] of the moments' type, two float32 ones beside float64, ten arrays of a chunk."""
    k, n, chunk = 128, 4096, 1 << 15  # 256 columns at a time
    if many:
        monkeypatch.setattr(hessian, "_FLOAT64_CHANNELS", k - 1)
    monkeypatch.setattr(gptq, "_CHUNK", chunk)
    monkeypatch.setattr(upper_cholesky, "_BLOCK", 32)  # small beside K, as 256 is beside thousands
    monkeypatch.setattr(upper_cholesky, "_STRIP", 64)
    w = rng.standard_normal((k, n)).astype(np.float32)
    x = rng.standard_normal((300, k)).astype(np.float32)
    moments = moments_of(x, x + np.float32(0.1))
    tracemalloc.start()
    found = quantize_gptq(w, moments, 128, rounds=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = found.codes.nbytes + 2 * found.scales.nbytes  # zero points are made too
    square = k * k * 4
    allowed = square if many else (2 + 1 + 1) * square
    assert peak <= result + allowed + 10 * 4 * chunk
    assert 10 * 4 * chunk < w.nbytes  # less than one array of all columns


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("weights", "inputs"), [(1e37, 1), (1e17, 1e10), (1, 1e16), (1e14, 1e16)])
def test_huge_weights_and_inputs(
    rng: np.random.Generator, w: np.ndarray, weights: float, inputs: float, symmetric: bool
) -> None:
    """Squares of inputs times weights would be beyond float32: the codes are as good as ever."""
    x = correlated(rng, 300, K)
    x8 = x + np.float32(0.02) * correlated(rng, 300, K)
    usual, huge = Hessian.empty(K), Hessian.empty(K)
    usual.add(x8, x)
    huge.add(x8 * np.float32(inputs), x * np.float32(inputs))
    left = np.empty_like(w)
    with np.errstate(all="raise", under="ignore"):
        found = quantize_gptq(w * np.float32(weights), huge, 16, symmetric=symmetric, left=left)
    expected = quantize_gptq(w, usual, 16, symmetric=symmetric)
    # Scaled inputs round in other last bits, which may turn a code round.
    assert (found.codes == expected.codes).mean() > 0.98
    np.testing.assert_allclose(
        np.abs(dequantize(found) / np.float32(weights) - w).mean(),
        np.abs(dequantize(expected) - w).mean(), rtol=0.01,
    )  # fmt: skip
    assert np.isfinite(left).all() and np.abs(left).max() < weights
