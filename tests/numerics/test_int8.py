from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.int8 import (
    FLOAT32_TINY,
    quantize_per_token,
    quantize_static,
    static_scale,
)

TINY = float(FLOAT32_TINY)


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_static_scale_by_hand() -> None:
    assert static_scale(254.0) == np.float32(2)
    assert static_scale(1.0) == np.float32(1) / np.float32(127)
    assert static_scale(1.0).dtype == np.float32


def test_static_scale_of_nothing_is_one() -> None:
    assert static_scale(0.0) == 1
    assert static_scale(TINY * 126) == 1  # the scale would be subnormal
    assert static_scale(TINY * 128) < 2 * TINY


def test_static_codes_by_hand() -> None:
    # scale 0.5, inverse 2: x * 2 = 0.5, 1.5, 2.5, -0.5, -1.5 round half to even.
    x = row(0.25, 0.75, 1.25, -0.25, -0.75, 0.26, 63.5, 63.75, 64, -64, -64.25, -1e30, 1e30)
    codes, scale = quantize_static(x, np.float32(0.5))
    np.testing.assert_array_equal(
        codes, [[0, 2, 2, 0, -2, 1, 127, 127, 127, -128, -128, -128, 127]]
    )
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(scale, np.array([0.5], np.float32))


def test_codes_come_from_the_reciprocal_not_from_a_division() -> None:
    # At halves of the scale 0.7 the two disagree somewhere; asserted, so no luck is involved.
    scale = np.float32(0.7)
    x = (np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)) * scale
    by_reciprocal = np.rint(x * (np.float32(1) / scale))
    assert (by_reciprocal != np.rint(x / scale)).any(), "the inputs must tell the two apart"
    codes, _ = quantize_static(x[None, :], scale)
    np.testing.assert_array_equal(codes[0], by_reciprocal)


def test_static_rows_with_nan_are_all_nan_and_others_are_untouched() -> None:
    x = np.array([[1, np.nan], [1, 2], [np.inf, -np.inf]], np.float32)
    codes, scale = quantize_static(x, np.float32(1))
    np.testing.assert_array_equal(codes, [[0, 0], [1, 2], [127, -128]])  # infinity saturates
    np.testing.assert_array_equal(scale, np.array([np.nan, 1, 1], np.float32))


def test_static_scale_at_the_smallest_normal() -> None:
    # 1 / 2**-126 = 2**126, so 3 * 2**-126 -> 3 and everything large saturates (the product is inf).
    codes, _ = quantize_static(row(3 * TINY, 1e10, -1e10), np.float32(TINY))
    np.testing.assert_array_equal(codes, [[3, 127, -128]])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, TINY / 2])
def test_unusable_static_scales_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive normal float32"):
        quantize_static(row(1), np.float32(bad))


def test_per_token_by_hand() -> None:
    # Row 0: 254 / 127 = 2, inverse 0.5: 254 -> 127, -3 -> -1.5 -> -2, 1 -> 0.5 -> 0, 5 -> 2.5 -> 2.
    # Row 1: 127 / 127 = 1: the codes are the values.
    x = np.array([[254, -3, 1, 5], [-127, 0.5, 1.5, 3]], np.float32)
    codes, scale = quantize_per_token(x)
    np.testing.assert_array_equal(codes, [[127, -2, 0, 2], [-127, 0, 2, 3]])
    np.testing.assert_array_equal(scale, np.array([2, 1], np.float32))
    assert (codes.dtype, scale.dtype) == (np.int8, np.float32)


def test_per_token_rows_do_not_touch_each_other() -> None:
    x = np.array(
        [[np.nan, 1], [np.inf, 1], [0, 0], [TINY, TINY], [1, -1], [-0.0, 127 * TINY]], np.float32
    )
    codes, scale = quantize_per_token(x)
    np.testing.assert_array_equal(codes, [[0, 0], [0, 0], [0, 0], [0, 0], [127, -127], [0, 127]])
    expected = [np.nan, np.nan, 0, 0, np.float32(1) / np.float32(127), TINY]
    np.testing.assert_array_equal(scale, np.array(expected, np.float32))


def test_per_token_of_the_largest_floats() -> None:
    top = np.finfo(np.float32).max
    codes, scale = quantize_per_token(row(top, -top, top / 2))
    # 127 * (1/2) = 63.5 up to the rounding of the reciprocal: 63 or 64.
    assert codes[0, :2].tolist() == [127, -127]
    assert codes[0, 2] in (63, 64)
    assert np.isfinite(scale).all()


def test_empty_inputs() -> None:
    codes, scale = quantize_per_token(np.zeros((2, 0), np.float32))
    assert codes.shape == (2, 0)
    np.testing.assert_array_equal(scale, [0, 0])
    codes, scale = quantize_per_token(np.zeros((0, 3), np.float32))
    assert (codes.shape, scale.shape) == ((0, 3), (0,))
    codes, scale = quantize_static(np.zeros((0, 3), np.float32), np.float32(1))
    assert (codes.shape, scale.shape) == ((0, 3), (0,))
