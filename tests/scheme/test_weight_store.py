from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fptq_onnx.numerics.group_weights import GroupWeights, quantize_rtn
from fptq_onnx.scheme.weight_store import WeightStore


def same(left: GroupWeights, right: GroupWeights) -> bool:
    if (left.zero_points is None) != (right.zero_points is None):
        return False
    pairs = [(left.codes, right.codes), (left.scales, right.scales)]
    if left.zero_points is not None and right.zero_points is not None:
        pairs.append((left.zero_points, right.zero_points))
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return equal and left.block_size == right.block_size


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [1, 2, 7, 172])
@pytest.mark.parametrize("block_size", [32, -1])
def test_what_is_put_comes_back(
    rng: np.random.Generator, tmp_path: Path, k: int, block_size: int, symmetric: bool
) -> None:
    store = WeightStore(tmp_path / "new" / "folder")
    weights = quantize_rtn(rng.standard_normal((k, 5)), block_size, symmetric=symmetric)
    store.put("/model/layers.0/q_proj/MatMul", weights)
    assert same(store.get("/model/layers.0/q_proj/MatMul"), weights)


def test_names_are_kept_apart_and_may_be_anything(rng: np.random.Generator, tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "w")
    names = ["a", "A", "a/b", "a.b", "../../a", "a" * 300, "\u03b1", ""]
    weights = [quantize_rtn(rng.standard_normal((6, 3)), -1) for _ in names]
    for name, item in zip(names, weights, strict=True):
        assert name not in store
        store.put(name, item)
        assert name in store
    for name, item in zip(names, weights, strict=True):
        assert same(store.get(name), item)
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "w"}


def test_a_second_put_replaces_the_first(rng: np.random.Generator, tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.put("a", quantize_rtn(rng.standard_normal((60, 3)), 32, symmetric=False))
    last = quantize_rtn(rng.standard_normal((6, 3)), -1)
    store.put("a", last)
    assert same(store.get("a"), last)
    assert len(list(tmp_path.iterdir())) == 1


def test_two_codes_to_a_byte(rng: np.random.Generator, tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.put("a", quantize_rtn(rng.standard_normal((1000, 1000)), -1))
    size = next(tmp_path.iterdir()).stat().st_size
    assert 500_000 <= size < 510_000


def test_remove(rng: np.random.Generator, tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "w")
    store.put("a", quantize_rtn(rng.standard_normal((6, 3)), -1))
    store.remove()
    assert not (tmp_path / "w").exists()
