from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fptq_onnx.numerics.log_equalization import equalization_scale
from fptq_onnx.numerics.smoothing_scales import (
    CANDIDATES,
    ChannelSizes,
    parse_equalization,
    smoothing_scale,
    weight_sizes,
)

K = 5
SIZES = ChannelSizes(
    absmax=np.array([8.0, 2.0, 0.5, 32.0, 4.0]),
    rms=np.array([2.0, 1.0, 0.25, 4.0, 1.5]),
    weight_absmax=np.array([0.5, 2.0, 1.0, 0.25, 4.0]),
    weight_rms=np.array([0.1, 0.4, 0.3, 0.05, 0.8]),
)


def centred(raw: np.ndarray) -> np.ndarray:
    """The formula's values, divided by their middle one."""
    return raw / np.median(raw)


def test_none_is_one_and_lae_the_papers() -> None:
    np.testing.assert_array_equal(smoothing_scale("none", SIZES), np.ones(K, np.float32))
    np.testing.assert_array_equal(smoothing_scale("lae", SIZES), equalization_scale(SIZES.absmax))


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 1.0])
def test_the_formulas_with_exponents(a: float) -> None:
    """Of five channels the median of the logarithms is one of them; exp and log round at 1e-16."""
    smooth = SIZES.absmax**a / SIZES.weight_absmax ** (1 - a)
    balance = SIZES.rms**a / SIZES.weight_rms ** (1 - a)
    got = smoothing_scale(f"smoothquant:{a}", SIZES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, centred(smooth), rtol=2.0**-23)
    np.testing.assert_allclose(
        smoothing_scale(f"balance:{a}", SIZES), centred(balance), rtol=2.0**-23
    )


def test_balance_zero_gives_all_rows_one_root_mean_square() -> None:
    rows = SIZES.weight_rms * smoothing_scale("balance:0", SIZES)
    np.testing.assert_allclose(rows, rows[0], rtol=1e-6)


@pytest.mark.parametrize("equalization", [*CANDIDATES, "smoothquant:0.5", "balance:1"])
@pytest.mark.parametrize("field", ["absmax", "rms", "weight_absmax", "weight_rms"])
def test_a_dead_channel_leaves_the_others_as_they_are(equalization: str, field: str) -> None:
    """Also where only one of the sizes is 0: ranges and mean squares may be of different data."""
    values = getattr(SIZES, field).copy()
    values[1] = 0
    s = smoothing_scale(equalization, replace(SIZES, **{field: values}))
    assert np.isfinite(s).all() and (s > 0).all()
    # Ratios of the living do not depend on it.
    before = smoothing_scale(equalization, SIZES)
    living = [0, 2, 3, 4]
    np.testing.assert_allclose(s[living] / s[0], before[living] / before[0], rtol=1e-6)


def test_dead_channels_get_the_middle() -> None:
    weights = SIZES.weight_rms.copy()
    weights[4] = 1e-9  # beside 0.4: nothing
    assert smoothing_scale("balance:0.25", replace(SIZES, weight_rms=weights))[4] == 1
    absmax = SIZES.absmax.copy()
    absmax[2] = 1e-6
    assert smoothing_scale("balance:0.25", replace(SIZES, absmax=absmax))[2] == 1
    dead = replace(SIZES, absmax=np.zeros(K))
    np.testing.assert_array_equal(smoothing_scale("balance:0.25", dead), 1)
    np.testing.assert_array_equal(smoothing_scale("lae", dead), 1)


def test_no_scale_is_extreme() -> None:
    huge = replace(SIZES, rms=np.array([1e-6, 1.0, 1.0, 1.0, 1e9]))
    s = smoothing_scale("balance:1", huge)
    np.testing.assert_allclose([s.min(), s.max()], [np.exp(-8), np.exp(8)], rtol=1e-6)
    assert s[0] == s.min() and s[4] == s.max()


@pytest.mark.parametrize(
    "bad", ["", "smooth", "balance", "balance:", "balance:x", "balance:-0.1", "balance:1.1",
            "balance:nan", "LAE", "lae:0.5", "smoothquant:inf"],
)  # fmt: skip
def test_no_such_formula(bad: str) -> None:
    for parse in (parse_equalization, lambda text: smoothing_scale(text, SIZES)):
        with pytest.raises(ValueError, match="no equalization"):
            parse(bad)


def test_formulas_are_taken_apart() -> None:
    assert parse_equalization("none") == ("none", 0)
    assert parse_equalization("smoothquant:0.75") == ("smoothquant", 0.75)
    assert all(parse_equalization(equalization) for equalization in CANDIDATES)


def test_sizes_of_weights_that_share_an_input(rng: np.random.Generator) -> None:
    a = rng.standard_normal((K, 3)).astype(np.float32)
    b = rng.standard_normal((K, 4)).astype(np.float32)
    a[2, 1] = -9
    absmax, rms = weight_sizes([a, b])
    both = np.concatenate([a, b], axis=1).astype(np.float64)
    np.testing.assert_array_equal(absmax, np.abs(both).max(axis=1))
    np.testing.assert_allclose(rms, np.sqrt((both**2).mean(axis=1)), rtol=1e-12)
    assert absmax[2] == 9
