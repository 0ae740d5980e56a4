from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fptq_onnx.calibration.stats import ActivationStats, ChannelRange
from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.token_sizes import count_sizes


def channel_range(rows: np.ndarray) -> ChannelRange:
    return ChannelRange(rows.min(axis=0), rows.max(axis=0), count_sizes(np.abs(rows).max(axis=1)))


def same(left: ActivationStats, right: ActivationStats) -> bool:
    return left.ranges.keys() == right.ranges.keys() and all(
        left.ranges[name].low.dtype == right.ranges[name].low.dtype == np.float32
        and left.ranges[name].low.tobytes() == right.ranges[name].low.tobytes()
        and left.ranges[name].high.tobytes() == right.ranges[name].high.tobytes()
        and left.ranges[name].sizes.tobytes() == right.ranges[name].sizes.tobytes()
        for name in left.ranges
    )


def test_absmax_looks_at_both_sides() -> None:
    channel = ChannelRange(np.array([-3, 1, -2], np.float32), np.array([2, 4, -1], np.float32))
    assert channel.absmax.tolist() == [3, 4, 2]
    assert channel.tensor_absmax == 4.0
    assert isinstance(channel.tensor_absmax, float)


def test_merging_shards_is_the_same_as_seeing_everything(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((90, 7)).astype(np.float32)
    shards = [ActivationStats({"x": channel_range(rows[i::3])}, 30, "a.txt") for i in range(3)]
    whole = ActivationStats({"x": channel_range(rows)}, 90, "a.txt")
    for order in ([0, 1, 2], [2, 0, 1]):
        first, second, third = (shards[i] for i in order)
        for merged in (first.merged(second).merged(third), first.merged(second.merged(third))):
            assert same(merged, whole)
            assert (merged.samples, merged.source) == (90, "a.txt")


def test_merging_keeps_what_only_one_side_saw() -> None:
    one = ActivationStats({"x": ChannelRange(-np.ones(2, "f4"), np.ones(2, "f4"))}, 1, "a")
    two = ActivationStats({"y": ChannelRange(-np.ones(3, "f4"), np.ones(3, "f4"))}, 2, "b")
    merged = one.merged(two)
    assert set(merged.ranges) == {"x", "y"}
    assert (merged.samples, merged.source) == (3, "a + b")


def test_statistics_of_different_models_do_not_merge() -> None:
    one = ActivationStats({"x": ChannelRange(-np.ones(2, "f4"), np.ones(2, "f4"))})
    two = ActivationStats({"x": ChannelRange(-np.ones(3, "f4"), np.ones(3, "f4"))})
    with pytest.raises(FptqError, match="'x' has 2 channels in one and 3 in the other"):
        one.merged(two)


def test_the_model_they_are_of_is_kept(tmp_path: Path) -> None:
    known, unknown = ActivationStats({}, 1, "a", "one"), ActivationStats({}, 1, "b")
    known.save(tmp_path / "stats.npz")
    assert ActivationStats.load(tmp_path / "stats.npz").model == "one"
    assert known.merged(unknown).model == unknown.merged(known).model == "one"
    with pytest.raises(FptqError, match="of different models"):
        known.merged(ActivationStats({}, 1, "c", "two"))


def test_saving_and_loading_is_exact(rng: np.random.Generator, tmp_path: Path) -> None:
    names = ["/model/norm/Mul_1_output_0", "a b", "\u03b1", "about", "low_0"]
    stats = ActivationStats(
        {name: channel_range(rng.standard_normal((5, 9)).astype(np.float32)) for name in names},
        48,
        "ts_train.txt, seed 0",
    )
    path = tmp_path / "stats.npz"
    stats.save(path)
    loaded = ActivationStats.load(path)
    assert same(loaded, stats)
    assert list(loaded.ranges) == names
    assert (loaded.samples, loaded.source) == (48, "ts_train.txt, seed 0")
    assert [item.name for item in tmp_path.iterdir()] == ["stats.npz"]


def test_files_of_earlier_versions_have_no_sizes(rng: np.random.Generator, tmp_path: Path) -> None:
    rows = rng.standard_normal((5, 9)).astype(np.float32)
    known = ActivationStats({"x": channel_range(rows)}, 1, "a")
    old = ActivationStats({"x": ChannelRange(rows.min(axis=0), rows.max(axis=0))}, 1, "a")
    old.save(tmp_path / "old.npz")
    loaded = ActivationStats.load(tmp_path / "old.npz")
    assert loaded.ranges["x"].sizes is None and not loaded.know_sizes and known.know_sizes
    assert known.merged(loaded).ranges["x"].sizes is None


def test_the_name_is_taken_as_given(tmp_path: Path) -> None:
    ActivationStats({}).save(tmp_path / "stats")
    assert ActivationStats.load(tmp_path / "stats").ranges == {}


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    ActivationStats({}, 1).save(path)
    ActivationStats({}, 2).save(path)
    assert ActivationStats.load(path).samples == 2


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "s.npz", tmp_path / "file" / "s.npz", tmp_path / "folder"):
        with pytest.raises(FptqError, match="cannot write the statistics"):
            ActivationStats({}).save(path)
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["file", "folder"]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=r"no statistics file at .*s\.npz"):
        ActivationStats.load(tmp_path / "s.npz")


def test_files_that_are_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    contents = [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00junk"]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(FptqError, match="is not a statistics file"):
            ActivationStats.load(path)
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(FptqError, match="is not a statistics file"):
        ActivationStats.load(path)
    for arrays in ({"x": np.ones(3)}, {"about": np.array('{"format": "other"}')}):
        np.savez(path, **arrays)
        with pytest.raises(FptqError, match="is not a statistics file"):
            ActivationStats.load(path)
    np.savez(path, about=np.array([{"a": 1}], object))  # a pickle is never run
    with pytest.raises(FptqError, match="is not a statistics file"):
        ActivationStats.load(path)


def test_damage_anywhere_is_noticed_or_harmless(rng: np.random.Generator, tmp_path: Path) -> None:
    stats = ActivationStats(
        {"x": channel_range(rng.standard_normal((5, 50)).astype(np.float32))}, 1, "a"
    )
    path = tmp_path / "s.npz"
    stats.save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert same(ActivationStats.load(path), stats), place
        except FptqError:
            refused += 1
    for keep in range(0, len(whole), 101):
        path.write_bytes(whole[:keep])
        with pytest.raises(FptqError):
            ActivationStats.load(path)
    assert refused > len(whole) / 7 / 2
