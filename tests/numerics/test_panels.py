from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.panels import (
    pack_codes,
    pack_group_values,
    panel_count,
    step_count,
    unpack_codes,
    unpack_group_values,
)

SHAPES = [(8, 64), (1, 1), (7, 63), (9, 65), (172, 130), (688, 64), (16, 192)]


def code_at(packed: np.ndarray, k: int, n: int) -> int:
    """Where the layout's text says code [k, n] is, worked out one element at a time."""
    panel, column = n // 64, n % 64
    step, within = k // 8, k % 8
    byte = packed[panel, step, 4 * column + within % 4]
    return int(byte & 15) if within < 4 else int(byte >> 4)


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_every_code_is_where_the_layout_says(rng: np.random.Generator, k: int, n: int) -> None:
    codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
    packed = pack_codes(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-n // 64), -(-k // 8), 256)
    assert packed.flags.c_contiguous
    for row in range(k):
        for col in range(n):
            assert code_at(packed, row, col) == codes[row, col], (row, col)


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_padding_is_zero_and_nothing_else_is_stored(
    rng: np.random.Generator, k: int, n: int
) -> None:
    codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
    packed = pack_codes(codes)
    nibbles = int((packed & 15).sum(dtype=np.int64) + (packed >> 4).sum(dtype=np.int64))
    assert nibbles == int(codes.sum(dtype=np.int64))


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_unpacking_gives_the_codes_back(rng: np.random.Generator, k: int, n: int) -> None:
    codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes), k, n), codes)


def test_one_line_by_hand() -> None:
    # Column 0 holds codes 0..7: bytes i = 0..3 are i | (i + 4) << 4.
    codes = np.zeros((8, 2), np.uint8)
    codes[:, 0] = range(8)
    codes[:, 1] = 15
    line = pack_codes(codes)[0, 0]
    assert line[:8].tolist() == [0x40, 0x51, 0x62, 0x73, 0xFF, 0xFF, 0xFF, 0xFF]
    assert not line[8:].any()


def test_group_values_by_hand() -> None:
    values = np.arange(2 * 66, dtype=np.float32).reshape(2, 66)
    packed = pack_group_values(values)
    assert packed.shape == (2, 2, 64)
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(packed[0], values[:, :64])
    np.testing.assert_array_equal(packed[1, :, :2], values[:, 64:])
    assert not packed[1, :, 2:].any()


def test_counts() -> None:
    assert [panel_count(n) for n in (1, 64, 65, 688)] == [1, 1, 2, 11]
    assert [step_count(k) for k in (1, 8, 9, 172, 688)] == [1, 1, 2, 22, 86]


@pytest.mark.parametrize("n", [1, 64, 66])
def test_unpacking_gives_the_group_values_back(rng: np.random.Generator, n: int) -> None:
    values = rng.standard_normal((3, n)).astype(np.float32)
    np.testing.assert_array_equal(unpack_group_values(pack_group_values(values), n), values)
