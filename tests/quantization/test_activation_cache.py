from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fptq_onnx.quantization.activation_cache import ValueStore

ARRAYS = {
    "float16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "int64": np.array([3, -4], np.int64),
    "bool": np.array([[True], [False]]),
    "scalar": np.array(7, np.int32),
    "empty": np.zeros((2, 0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


@pytest.mark.parametrize("budget", [0, 30, 1 << 20])
@pytest.mark.parametrize("kind", ARRAYS)
def test_what_is_put_comes_back(tmp_path: Path, kind: str, budget: int) -> None:
    store = ValueStore(tmp_path / "values", budget)
    store.put("float", "x", 0, ARRAYS[kind])
    got = store.get("float", "x", 0)
    assert got.dtype == ARRAYS[kind].dtype and got.shape == ARRAYS[kind].shape
    np.testing.assert_array_equal(got, ARRAYS[kind])
    store.drop("float", "x")
    assert not list((tmp_path / "values").iterdir())


def files(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_keys_do_not_mix(tmp_path: Path) -> None:
    store = ValueStore(tmp_path, 0)
    for number, key in enumerate([("a", "x", 0), ("a", "x", 1), ("b", "x", 0), ("a", "y", 0)]):
        store.put(*key, np.array([number]))
    assert [int(store.get("a", "x", i)[0]) for i in (0, 1)] == [0, 1]
    assert int(store.get("b", "x", 0)[0]) == 2 and int(store.get("a", "y", 0)[0]) == 3
    store.drop("a", "x")
    assert ("a", "x") not in store and ("b", "x") in store and ("a", "y") in store
    assert files(tmp_path) == 2
    store.drop("a", "x")  # nothing there: nothing happens
    with pytest.raises(KeyError):
        store.get("a", "x", 0)


def test_memory_up_to_the_budget_then_files(tmp_path: Path) -> None:
    store = ValueStore(tmp_path, 16)  # two arrays of 8 bytes, exactly
    for batch in range(3):
        store.put("a", "x", batch, np.array([float(batch)]))
    assert files(tmp_path) == 1
    store.drop("a", "x")
    assert files(tmp_path) == 0
    for batch in range(2):  # the room is free again
        store.put("a", "y", batch, np.array([float(batch)]))
    assert files(tmp_path) == 0


@pytest.mark.parametrize("budget", [0, 8])
def test_putting_again_replaces(tmp_path: Path, budget: int) -> None:
    store = ValueStore(tmp_path, budget)
    for value in range(3):
        store.put("a", "x", 0, np.array([float(value)]))
    assert store.get("a", "x", 0)[0] == 2
    assert files(tmp_path) == (1 if budget == 0 else 0)
    store.drop("a", "x")
    assert files(tmp_path) == 0
