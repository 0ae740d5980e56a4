"""Every kind of calibration source, and what each refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from fptq_onnx.calibration.data import Feeds, TokenWindows, open_source
from fptq_onnx.errors import FptqError
from fptq_onnx.tensor_spec import TensorSpec
from fptq_onnx.text import first_windows

DEMO = Path(__file__).resolve().parents[2] / "models" / "tinystories-7m"
HELDOUT = DEMO / "heldout.txt"
LM = [
    TensorSpec("input_ids", "int64", ("b", "s")),
    TensorSpec("attention_mask", "int64", ("b", "t")),
]
PLAIN = [TensorSpec("x", "float32", ("b", 3)), TensorSpec("n", "int64", (2,))]


def opened(spec: Any, inputs: list[TensorSpec] = LM, **changes: Any) -> Any:
    arguments = {
        "model_folder": DEMO,
        "inputs": inputs,
        "vocab_size": 2048,
        "max_samples": 5,
        "max_seq_len": 40,
    }
    return open_source(spec, **{**arguments, **changes})


def sample(**changes: Any) -> dict[str, Any]:
    return {"x": np.zeros((4, 3), np.float32), "n": np.zeros(2, np.int64), **changes}


def as_lists(windows: list[Any]) -> list[list[int]]:
    return [window.tolist() for window in windows]


def test_random_tokens() -> None:
    source = opened("random", max_samples=50)
    assert isinstance(source, TokenWindows)
    ids = np.stack(source.windows)
    assert ids.shape == (50, 40)
    assert (ids[:, 0] == 1).all()
    # 1950 draws from 2048 ids: all below 1024, or one half never met, has probability 2^-1950.
    assert 0 <= ids.min() < 1024 < ids.max() < 2048
    # The mean of 1950 uniform draws deviates by 2048/sqrt(12*1950) = 13.4; six of these.
    assert abs(ids[:, 1:].mean() - 1023.5) < 6 * 13.4
    assert source.decode_steps == 8


def test_random_tokens_follow_the_seed() -> None:
    one, same, other = (opened("random", seed=seed) for seed in (7, 7, 8))
    assert as_lists(one.windows) == as_lists(same.windows)
    assert as_lists(one.windows) != as_lists(other.windows)


def test_random_tokens_stay_within_the_smaller_vocabulary(tmp_path: Path) -> None:
    small = opened("random", vocab_size=10, model_folder=tmp_path)
    assert np.stack(small.windows).max() == 9
    padded = opened("random", vocab_size=1_000_000)
    assert np.stack(padded.windows).max() < 2048
    with pytest.raises(FptqError, match="how large the vocabulary is"):
        opened("random", vocab_size=None, model_folder=tmp_path)


def test_text_windows_come_from_the_text_and_the_held_out_are_others() -> None:
    source = opened(HELDOUT)
    pool = as_lists(first_windows(HELDOUT, DEMO, count=28, length=40))
    chosen, held_out = as_lists(source.windows), as_lists(source.heldout)
    assert len(chosen) == 5 and len(held_out) == 8
    assert all(window in pool for window in chosen + held_out)
    assert not any(window in chosen for window in held_out)
    assert as_lists(source.verification) == held_out


def test_text_windows_follow_the_seed() -> None:
    one, same, other = (opened(str(HELDOUT), seed=seed) for seed in (7, 7, 8))
    assert as_lists(one.windows) == as_lists(same.windows)
    assert as_lists(one.windows) != as_lists(other.windows)


def test_a_short_text_is_one_window_and_verifies_on_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A cat.")
    source = opened(tmp_path / "a.txt")
    assert len(source.windows) == 1 and source.windows[0][0] == 1
    assert source.heldout == []
    assert as_lists(source.verification) == as_lists(source.windows)


def test_jsonl_with_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "A cat."}\n')
    assert len(opened(tmp_path / "a.jsonl", text_field="body").windows) == 1
    with pytest.raises(FptqError, match='no field "text"'):
        opened(tmp_path / "a.jsonl")


def test_windows_end_at_the_context_length() -> None:
    assert {len(window) for window in opened(HELDOUT, max_seq_len=9999).windows} == {256}
    assert {len(window) for window in opened("random", max_seq_len=9999).windows} == {256}


def test_windows_of_exactly_the_length_the_graph_demands(tmp_path: Path) -> None:
    fixed = [TensorSpec("input_ids", "int64", (1, 24))]
    (tmp_path / "a.txt").write_text("A cat sat on a mat. " * 9)  # not a multiple of 24 tokens
    source = opened(tmp_path / "a.txt", fixed, max_seq_len=7)
    lengths = {len(window) for window in source.windows + source.heldout}
    assert lengths == {24}
    (tmp_path / "a.txt").write_text("A cat.")
    with pytest.raises(FptqError, match="exactly 24 tokens"):
        opened(tmp_path / "a.txt", fixed)


def test_text_errors(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match="no calibration data at"):
        opened(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(FptqError, match="is empty"):
        opened(tmp_path / "empty.txt")
    (tmp_path / "a.csv").write_text("A cat.")
    with pytest.raises(FptqError, match=r"must end in \.txt"):
        opened(tmp_path / "a.csv")
    with pytest.raises(FptqError, match=r"no tokenizer\.json"):
        opened(HELDOUT, model_folder=tmp_path)
    with pytest.raises(FptqError, match="knows only 2000"):
        opened(HELDOUT, vocab_size=2000)
    with pytest.raises(FptqError, match="no input_ids"):
        opened(HELDOUT, PLAIN)
    with pytest.raises(FptqError, match="no input_ids"):
        opened("random", PLAIN)


def test_tokenizer_is_checked_against_the_configuration_too(tmp_path: Path) -> None:
    shutil.copy(DEMO / "genai_config.json", tmp_path)
    stored = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    stored.add_tokens(["zzzzqqqq"])
    stored.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FptqError, match="ids up to 2048"):
        opened(HELDOUT, model_folder=tmp_path, vocab_size=None)


def test_npz_files_in_order_of_name(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        np.savez(tmp_path / f"{number}.npz", **sample(n=np.full(2, number)))
    source = opened(tmp_path, PLAIN)
    assert isinstance(source, Feeds)
    for _ in range(2):  # files can be gone through again
        assert [int(feed["n"][0]) for feed in source.samples] == [0, 1, 2]
    assert len(list(opened(tmp_path, PLAIN, max_samples=2).samples)) == 2
    single = opened(str(tmp_path / "1.npz"), PLAIN)
    assert [int(feed["n"][0]) for feed in single.samples] == [1]
    assert len(single.verification) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": np.zeros((4, 3), np.float32)}, r"lacks the input n int64 \[2\]; it holds x"),
        (sample(y=np.zeros(1)), 'holds "y", which is no input of the model; its inputs are n, x'),
        (sample(x=np.zeros((4, 3))), "wants x float32.*dtype differs"),
        (sample(x=np.zeros(3, np.float32)), "rank differs"),
        (sample(x=np.zeros((4, 5), np.float32)), "must be 3, not 5"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(FptqError, match=message):
        opened(tmp_path / "a.npz", PLAIN)
    with pytest.raises(FptqError, match=message):
        opened([content], PLAIN)


def test_npz_errors(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=r"holds no \.npz file"):
        opened(tmp_path, PLAIN)
    (tmp_path / "a.npz").write_bytes(b"PK not a zip")
    with pytest.raises(FptqError, match=r"cannot read .*a\.npz"):
        opened(tmp_path, PLAIN)
    np.savez(tmp_path / "a.npz", x=np.array([object()]))
    with pytest.raises(FptqError, match=r"cannot read .*a\.npz"):
        opened(tmp_path / "a.npz", PLAIN)


def test_an_iterable_is_drawn_lazily_and_no_further_than_wanted() -> None:
    drawn = []

    def samples() -> Iterator[dict[str, Any]]:
        for number in range(100):
            drawn.append(number)
            yield sample(n=np.full(2, number))

    source = opened(samples(), PLAIN)
    assert drawn == [0]
    assert [int(feed["n"][0]) for feed in source.samples] == [0, 1, 2, 3, 4]
    assert drawn == [0, 1, 2, 3, 4]


class Reader:
    """As onnxruntime's CalibrationDataReader: get_next gives None at the end."""

    def __init__(self, count: int) -> None:
        self._left = iter([sample(n=np.full(2, number)) for number in range(count)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def test_calibration_data_reader() -> None:
    source = opened(Reader(3), PLAIN)
    assert [int(feed["n"][0]) for feed in source.samples] == [0, 1, 2]


@pytest.mark.parametrize("nothing", [[], Reader(0)])
def test_nothing_in_it(nothing: Any) -> None:
    with pytest.raises(FptqError, match="not one sample"):
        opened(nothing, PLAIN)


@pytest.mark.parametrize("wrong", [3, {"x": 1}])
def test_no_source_at_all(wrong: Any) -> None:
    with pytest.raises(FptqError, match="cannot be a"):
        opened(wrong, PLAIN)
    with pytest.raises(FptqError, match="calibration sample 1 is a"):
        opened([3], PLAIN)
