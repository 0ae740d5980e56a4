from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.numerics.group_weights import dequantize
from fptq_onnx.numerics.second_moments import SecondMoments
from fptq_onnx.numerics.token_weights import CAP, token_weights


def test_ordinary_tokens_count_one(rng: np.random.Generator) -> None:
    energy = rng.chisquare(20, 400)
    np.testing.assert_array_equal(token_weights(energy), np.ones(400, np.float32))
    np.testing.assert_array_equal(token_weights(np.zeros(3)), np.ones(3, np.float32))
    assert token_weights(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("massive", [1, 8])  # of 16 tokens
def test_massive_tokens_count_as_the_cap(massive: int) -> None:
    energy = np.full(16, 2.0)
    energy[:massive] = 2e8
    found = token_weights(energy).astype(np.float64)
    np.testing.assert_allclose(found[:massive] * energy[:massive], CAP * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(found[massive:], 1)


@pytest.mark.parametrize("weights", [None, "some"])
def test_moments_of_weighted_tokens(rng: np.random.Generator, weights: str | None) -> None:
    x8, x = (rng.standard_normal((50, 6)).astype(np.float32) for _ in range(2))
    each = None if weights is None else rng.uniform(0, 1, 50).astype(np.float32)
    moments = SecondMoments.empty(6)
    moments.add(x8, x, each)
    diagonal = np.diag(np.ones(50) if each is None else each.astype(np.float64))
    np.testing.assert_allclose(moments.xx, x8.T.astype("f8") @ diagonal @ x8, atol=1e-4)
    assert moments.x_float is not None
    np.testing.assert_allclose(moments.x_float, x8.T.astype("f8") @ diagonal @ x, atol=1e-4)
    assert moments.tokens == 50


def test_gptq_still_fits_the_ordinary_tokens(rng: np.random.Generator) -> None:
    """Errors in float64. With the massive token as it is, damping makes them rounding to nearest's.

    The channel's mean square sets the damping: 10^4 times that of the others.
    """
    mixed = rng.standard_normal((8, 32))
    x = (rng.standard_normal((2000, 8)) @ mixed + 0.1 * rng.standard_normal((2000, 32))) / 30
    x = x.astype(np.float32)
    w = rng.standard_normal((32, 24)).astype(np.float32)
    massive = x.copy()
    massive[0], massive[0, 5] = 0, 2000

    def error(rows: np.ndarray, weights: np.ndarray | None) -> float:
        moments = SecondMoments.empty(32, with_float=False)
        moments.add(rows, weights=weights)
        missed = x[1:].astype("f8") @ (w - dequantize(quantize_gptq(w, moments, 32)))
        return float(np.square(missed).sum() / np.square(x[1:].astype("f8") @ w).sum())

    energy = np.square(massive, dtype=np.float64).sum(axis=1)
    without = error(x, None)
    assert error(massive, token_weights(energy)) < 1.2 * without
    assert error(massive, None) > 3 * without
