from __future__ import annotations

import math

import numpy as np
import pytest

from fptq_onnx.numerics.swiglu import GELU_TANH, SILU, exponential, gated

POINTS = np.linspace(-30, 30, 6001).astype(np.float32)


def exact(x: np.ndarray, function: str) -> np.ndarray:
    wide = x.astype(np.float64)
    if function == SILU:
        return wide / (1 + np.exp(-wide))
    t = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    with np.errstate(over="ignore"):
        return wide / (1 + np.exp(-t))  # 0.5 (1 + tanh(t / 2)) without its cancellation


def test_exponential_at_known_points() -> None:
    x = np.array([0, 1, -1, 10, -87, 88], np.float32)
    expected = [1, math.e, 1 / math.e, math.exp(10), math.exp(-87), math.exp(88)]
    np.testing.assert_allclose(exponential(x), expected, rtol=3 * 2.0**-24)
    assert exponential(np.zeros(1, np.float32))[0] == 1


@pytest.mark.parametrize("function", [SILU, GELU_TANH])
def test_against_float64(function: str) -> None:
    """out = x / (1 + e) * u: rounding of t is amplified by |t| in e, the rest is a few roundings.

    t has at most 4 roundings, so the relative error of e is below 4 * 2**-24 * max(|t|, 1) + 4 *
    2**-24, and the quotient's no larger; for SiLU t = x is exact, for GELU |t| grows with x**3
    until the clip at 88. Beyond the clip e is off by a factor, where the true value is below 1e-36.
    """
    up = np.float32(0.75) + np.zeros_like(POINTS)
    got = gated(POINTS, up, function)
    want = exact(POINTS, function) * 0.75
    t = np.minimum(np.abs(POINTS * (1 if function == SILU else 1.6 + 0.0714 * POINTS**2)), 88)
    bound = (4 * np.maximum(t, 1) + 8) * 2.0**-24 * np.abs(want) + 1e-35
    assert (np.abs(got - want) <= bound).all()


def test_gelu_is_not_silu() -> None:
    one = np.ones(1, np.float32)
    assert gated(one, one, SILU)[0] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)
    assert gated(one, one, GELU_TANH)[0] == pytest.approx(0.8411920, rel=1e-6)


def test_nan_stays_nan_and_extremes_stay_finite() -> None:
    gate = np.array([np.nan, 1e30, -1e30, 3e38, -3e38], np.float32)
    for function in (SILU, GELU_TANH):
        got = gated(gate, np.ones_like(gate), function)
        assert np.isnan(got[0]) and np.isfinite(got[1:]).all()
        np.testing.assert_array_equal(got[[1, 3]], gate[[1, 3]])
