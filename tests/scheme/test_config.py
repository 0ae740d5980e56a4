from __future__ import annotations

import dataclasses

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.scheme.config import BLOCK_SIZES, TARGETS, Config


def test_the_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.v0, config.v1, config.block_size, config.symmetric) == (15, 150, 128, True)
    assert (config.ignore, config.quantize) == ((), True)
    assert TARGETS == ("custom", "matmulnbits", "qdq")
    assert BLOCK_SIZES == (32, 64, 128, 256, -1)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().v0 = 3  # type: ignore[misc]


@pytest.mark.parametrize(("v0", "v1"), [(0, 0), (15, 15), (0, float("inf"))])
def test_thresholds_that_make_sense(v0: float, v1: float) -> None:
    assert Config(v0=v0, v1=v1).v1 == v1


@pytest.mark.parametrize(
    ("v0", "v1"),
    [(151, 150), (-1, 150), (float("nan"), 150), (15, float("nan")), (15, 14.999)],
)
def test_thresholds_that_make_none(v0: float, v1: float) -> None:
    with pytest.raises(FptqError, match=r"0 <= v0 <= v1, got .*: raise --v1 or lower --v0"):
        Config(v0=v0, v1=v1)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_block_sizes(block_size: int) -> None:
    assert Config(block_size=block_size).block_size == block_size


@pytest.mark.parametrize("block_size", [0, 8, 16, 127, 512, -2])
def test_other_block_sizes(block_size: int) -> None:
    with pytest.raises(FptqError, match=f"{block_size} is not one of 32, 64, 128, 256, -1"):
        Config(block_size=block_size)


def test_bad_expressions() -> None:
    with pytest.raises(FptqError, match=r"--ignore '\(' is not a regular expression: missing"):
        Config(ignore=("fine", "("))
