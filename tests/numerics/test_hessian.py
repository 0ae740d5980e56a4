from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics import hessian
from fptq_onnx.numerics.hessian import Hessian

K = 7


@pytest.fixture
def tokens(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((50, K)).astype(np.float32) * np.arange(1, K + 1, dtype=np.float32)
    return (x + 0.25 * rng.standard_normal(x.shape)).astype(np.float32), x


def of(x8: np.ndarray, x: np.ndarray | None) -> Hessian:
    moments = Hessian.empty(K, with_float=x is not None)
    moments.add(x8, x)
    return moments


def bound(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A float32 sum of as many products as there are tokens: gamma_n sum|a||b|, n eps / 2 each."""
    return len(a) * 2.0**-24 * 1.01 * (np.abs(a).T.astype(np.float64) @ np.abs(b))


def test_sums_of_products(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x8, x = tokens
    moments = of(x8, x)
    exact8, exact = x8.astype(np.float64), x.astype(np.float64)
    assert (np.abs(moments.xx - exact8.T @ exact8) <= bound(x8, x8)).all()
    # Row: the quantized input, column: the float one. The two orders differ by far more.
    assert moments.x_float is not None
    assert (np.abs(moments.x_float - exact8.T @ exact) <= bound(x8, x)).all()
    assert (np.abs(exact8.T @ exact - exact.T @ exact8) > 10 * bound(x8, x)).any()
    assert moments.tokens == 50
    np.testing.assert_allclose(moments.diagonal(), (exact8**2).mean(axis=0), rtol=50 * 2.0**-24)


def test_batches_and_merged_sets_are_the_whole(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x8, x = tokens
    whole, batches = of(x8, x), of(x8[:20], x[:20])
    batches.add(x8[20:], x[20:])
    merged = of(x8[:20], x[:20]).merged(of(x8[20:], x[20:]))
    for other in (batches, merged):
        assert other.tokens == 50
        assert (np.abs(other.xx - whole.xx) <= 2 * bound(x8, x8)).all()
        assert other.x_float is not None and whole.x_float is not None
        assert (np.abs(other.x_float - whole.x_float) <= 2 * bound(x8, x)).all()


def test_merging_leaves_its_parts_alone(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x8, x = tokens
    a, b = of(x8[:20], None), of(x8[20:], x[20:])
    before = a.xx.copy(), b.xx.copy()
    a.merged(b).xx[:] = 0
    np.testing.assert_array_equal(a.xx, before[0])
    np.testing.assert_array_equal(b.xx, before[1])


@pytest.mark.parametrize("first", [True, False])
def test_a_set_whose_inputs_are_the_same_merges_as_such(
    tokens: tuple[np.ndarray, np.ndarray], first: bool
) -> None:
    x8, x = tokens
    same, both = of(x8[:20], None), of(x8[20:], x[20:])
    merged = same.merged(both) if first else both.merged(same)
    expected = of(np.concatenate([x8[:20], x8[20:]]), np.concatenate([x8[:20], x[20:]]))
    assert merged.x_float is not None and expected.x_float is not None
    assert (np.abs(merged.x_float - expected.x_float) <= 2 * bound(x8, x)).all()
    assert same.merged(same).x_float is None


def test_many_channels_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_FLOAT64_CHANNELS", K)
    for channels, dtype in ((K, np.float64), (K + 1, np.float32)):
        moments = Hessian.empty(channels)
        assert moments.xx.shape == (channels, channels)
        assert moments.x_float is not None
        assert moments.xx.dtype == moments.x_float.dtype == dtype
        assert not moments.xx.any() and not moments.x_float.any() and moments.tokens == 0
        assert not np.shares_memory(moments.xx, moments.x_float)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_nothing_added(
    tokens: tuple[np.ndarray, np.ndarray], which: int, bad: float
) -> None:
    tokens[which][3, 2] = bad
    moments = Hessian.empty(K)
    with pytest.raises(ValueError, match="NaN or infinity"):
        moments.add(*tokens)
    assert not moments.xx.any() and moments.tokens == 0


def test_a_missing_float_input_is_refused_and_nothing_added(
    tokens: tuple[np.ndarray, np.ndarray],
) -> None:
    moments = Hessian.empty(K)
    with pytest.raises(ValueError, match="the float input is missing"):
        moments.add(tokens[0])
    assert not moments.xx.any() and moments.tokens == 0


def test_before_any_token(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(Hessian.empty(K).diagonal(), np.zeros(K))
    no_tokens = Hessian.empty(K)
    no_tokens.add(tokens[0][:0], tokens[1][:0])
    assert no_tokens.tokens == 0
