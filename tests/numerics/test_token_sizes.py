from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.token_sizes import BINS, LARGEST_LOSS, count_sizes, loses_tokens, mean_loss


def test_counts_add_up_over_sets(rng: np.random.Generator) -> None:
    sizes = np.exp(3 * rng.standard_normal(500))
    both = count_sizes(sizes[:200]) + count_sizes(sizes[200:])
    np.testing.assert_array_equal(both, count_sizes(sizes))
    assert both.sum() == 500 and both.shape == (BINS,)


def test_zeros_do_not_count_and_the_ends_do() -> None:
    counts = count_sizes(np.array([0.0, 1e-45, 3e38], np.float32))
    assert counts.sum() == 2 and counts[0] == 1
    assert mean_loss(count_sizes(np.zeros(3)), 1.0) == 0


def test_the_loss_by_hand(rng: np.random.Generator) -> None:
    """Bins are a quarter of an octave wide: their middle is off by 2^(1/8) at most."""
    sizes = np.exp(2 * rng.standard_normal(3000))
    expected = np.minimum(1, sizes.max() / (127 * sizes)).mean()
    assert mean_loss(count_sizes(sizes), sizes.max()) == pytest.approx(expected, rel=0.09)


def test_the_loss_is_the_error_of_static_rounding(rng: np.random.Generator) -> None:
    """In float64, for tokens of values spread evenly up to their size."""
    sizes = np.array([*[1.0] * 40, 12.0])
    x = rng.uniform(-1, 1, (41, 4000)) * sizes[:, None]
    step = 12.0 / 127
    error = np.rint(x / step) * step - x
    relative = np.sqrt(np.square(error).mean(axis=1) / np.square(x).mean(axis=1))
    # A root mean square of size / sqrt(3) where the loss takes size / sqrt(12): half of it.
    assert 2 * relative.mean() == pytest.approx(mean_loss(count_sizes(sizes), 12.0), rel=0.12)


def test_one_massive_token_is_seen_and_a_few_octaves_are_not() -> None:
    massive = count_sizes(np.array([2000.0, *[0.3] * 500]))
    assert mean_loss(massive, 2000.0) > 0.99 and loses_tokens(massive, 2000.0)
    octaves = count_sizes(np.geomspace(1, 16, 500))
    assert mean_loss(octaves, 16.0) < LARGEST_LOSS and not loses_tokens(octaves, 16.0)
    assert not loses_tokens(None, 2000.0)
