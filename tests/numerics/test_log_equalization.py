from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.log_equalization import (
    MIN_CHANNEL_ABSMAX,
    equalization_scale,
    equalized_absmax,
)


def test_scale_by_hand() -> None:
    # s = a / log2(2 + a):  2 -> 2 / log2(4) = 1;  6 -> 6 / log2(8) = 2;  14 -> 14 / log2(16) = 3.5;
    # 62 -> 62 / log2(64) = 31 / 3;  1022 -> 1022 / log2(1024) = 102.2
    scale = equalization_scale(np.array([2, 6, 14, 62, 1022], np.float32))
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.array([1, 2, 3.5, 31 / 3, 102.2], np.float32))


def test_an_equalized_channel_tops_at_the_logarithm() -> None:
    # a / s = log2(2 + a): 14 becomes 4, 1022 becomes 10.
    absmax = np.array([14.0, 1022.0])
    # s is rounded to float32 once, so the quotient is off by at most half an eps of float32.
    assert equalized_absmax(absmax, equalization_scale(absmax)) == pytest.approx(10, rel=2**-24)


def test_channels_never_seen_active_are_left_alone() -> None:
    tiny = MIN_CHANNEL_ABSMAX
    scale = equalization_scale(np.array([0.0, tiny / 2, tiny, 1e-40]))
    # At the threshold itself: 1e-5 / log2(2.00001) = 1e-5 / 1.0000072...
    expected = [1, 1, tiny / np.log2(2 + tiny), 1]
    np.testing.assert_array_equal(scale, np.array(expected, np.float32))


def test_huge_channels_stay_finite() -> None:
    top = float(np.finfo(np.float32).max)
    scale = equalization_scale(np.array([top], np.float32))
    # log2(2 + 2**128 (1 - 2**-24)) is 128 to within 1e-7.
    np.testing.assert_array_equal(scale, np.array([top / 128], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_impossible_maxima_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        equalization_scale(np.array([1.0, bad]))


def test_no_channels() -> None:
    empty = np.zeros(0, np.float32)
    assert equalization_scale(empty).shape == (0,)
    assert equalized_absmax(empty, empty) == 0.0
