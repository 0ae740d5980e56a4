import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptq_onnx.calibration.data import (
    VERIFICATION_WINDOWS,
    Feeds,
    Source,
    TokenWindows,
    open_source,
)
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.text.tokenizer import TextTokenizer, load_tokenizer
from fptq_onnx.text.windows import first_tokens

DEMO = Path(__file__).resolve().parents[2] / "models" / "tinystories-7m"
HELDOUT = DEMO / "heldout.txt"
LM = [TensorSpec("input_ids", "int64", ("batch", "seq"))]
ENCODER = [
    TensorSpec("x", "float32", ("batch", 8)),
    TensorSpec("flag", "bool", ("batch",)),
]
SAMPLE = {"x": np.zeros((2, 8), np.float32), "flag": np.ones(2, bool)}


def source(spec: Any, inputs: list[TensorSpec] = LM, **changed: Any) -> Source:
    options: dict[str, Any] = {
        "model_folder": DEMO,
        "inputs": inputs,
        "vocab_size": 2048,
        "max_samples": 4,
        "max_seq_len": 64,
        "seed": 0,
        **changed,
    }
    return open_source(spec, **options)


def tokens(spec: Any, **changed: Any) -> TokenWindows:
    opened = source(spec, **changed)
    assert isinstance(opened, TokenWindows)
    return opened


def feeds(spec: Any, inputs: list[TensorSpec] = ENCODER, **changed: Any) -> Feeds:
    opened = source(spec, inputs, **changed)
    assert isinstance(opened, Feeds)
    return opened


def stack(windows: list[np.ndarray]) -> np.ndarray:
    return np.stack(windows)


def test_random_tokens_cover_the_vocabulary_after_bos() -> None:
    opened = tokens("random", max_samples=100)
    ids = stack(opened.windows)
    assert ids.shape == (100, 64)
    assert ids.dtype == np.int64
    assert (ids[:, 0] == 1).all()
    # 6300 uniform draws: each end's last twentieth is missed with probability 0.95^6300.
    assert 0 <= ids[:, 1:].min() < 102
    assert 1945 < ids[:, 1:].max() < 2048
    assert len(opened.heldout) == VERIFICATION_WINDOWS
    np.testing.assert_array_equal(ids, stack(tokens("random", max_samples=100).windows))
    assert (ids != stack(tokens("random", max_samples=100, seed=1).windows)).any()


def test_random_tokens_stay_inside_the_smaller_vocabulary(tmp_path: Path) -> None:
    assert stack(tokens("random", vocab_size=10**6).windows).max() < 2048  # the tokenizer's
    few = tokens("random", vocab_size=7, model_folder=tmp_path)
    ids = stack(few.windows)
    assert ids.max() == 6  # 256 draws of 7
    with pytest.raises(FptqError, match="how large the vocabulary is"):
        tokens("random", vocab_size=None, model_folder=tmp_path)


def test_without_a_tokenizer_the_named_bos_begins_random_windows(tmp_path: Path) -> None:
    """A lookup of an id beyond the vocabulary would fail deep inside ONNX Runtime."""
    (tmp_path / "config.json").write_text('{"bos_token_id": 7, "vocab_size": 7}')
    with pytest.raises(FptqError, match=r"token 7 is beyond the model's 7 tokens: correct bos_"):
        tokens("random", vocab_size=None, model_folder=tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 6, "vocab_size": 7}')
    assert tokens("random", vocab_size=None, model_folder=tmp_path).windows[0][0] == 6


def test_random_floats_for_a_model_without_tokens(tmp_path: Path) -> None:
    image = TensorSpec("pixels", "float32", ("b", 3, 8, 8))
    opened = source("random", inputs=[image], model_folder=tmp_path, max_samples=5)
    samples = np.stack([sample["pixels"] for sample in opened.samples])
    assert samples.shape == (5, 1, 3, 8, 8) and samples.dtype == np.float32
    assert abs(samples.mean()) < 0.2 and abs(samples.std() - 1) < 0.1
    (held_out, *_) = opened.verification
    assert (
        len(opened.verification) == 8
        and (held_out["pixels"] != samples).any(axis=(1, 2, 3, 4)).all()
    )
    again = source("random", inputs=[image], model_folder=tmp_path, max_samples=5)
    np.testing.assert_array_equal(again.samples[0]["pixels"], samples[0])
    for spec in (
        TensorSpec("x", "float32", ("b", "frames", 8)),
        TensorSpec("x", "int64", ("b", 8)),
        TensorSpec("x", "float32", None),
    ):
        with pytest.raises(FptqError, match=r"cannot draw x .* at random.*\[batch, 3, 224"):
            source("random", inputs=[spec], model_folder=tmp_path)
    with pytest.raises(FptqError, match=r"no input_ids.*or --calibration random for normal"):
        source("generated", inputs=[image], model_folder=tmp_path)


def test_windows_of_a_text_are_spread_disjoint_and_repeatable() -> None:
    opened = tokens(HELDOUT)
    everything = [tuple(w) for w in opened.windows + opened.heldout]
    assert len(opened.windows) == 4
    assert len(opened.heldout) == VERIFICATION_WINDOWS
    assert len(set(everything)) == len(everything)
    assert opened.verification is opened.heldout
    assert opened.decode_steps == 8
    np.testing.assert_array_equal(stack(opened.windows), stack(tokens(HELDOUT).windows))
    assert (stack(opened.windows) != stack(tokens(HELDOUT, seed=1).windows)).any()


def test_a_short_text_is_used_whole_and_verified_on_itself(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Once upon a time there was a dog.")
    opened = tokens(path)
    assert len(opened.windows) == 1
    assert opened.windows[0][0] == 1
    assert opened.heldout == []
    assert opened.verification == opened.windows


def test_windows_suit_the_model() -> None:
    assert len(tokens("random", max_seq_len=9999).windows[0]) == 256  # its context length
    fixed = [TensorSpec("input_ids", "int64", (1, 32))]
    assert {len(w) for w in tokens("random", inputs=fixed).windows} == {32}


def test_a_fixed_length_gets_no_shorter_window(tmp_path: Path) -> None:
    fixed = [TensorSpec("input_ids", "int64", (1, 32))]
    path = tmp_path / "a.txt"
    path.write_text("A dog ran to the park. " * 8)  # not a multiple of 32 tokens
    count = len(first_tokens(path, TextTokenizer.open(DEMO, None), 10**4))
    assert 32 + 16 <= count < 64  # a rest that is long enough to be kept otherwise
    assert [len(w) for w in tokens(path, inputs=fixed).windows] == [32]
    path.write_text("A dog.")
    with pytest.raises(FptqError, match="exactly 32 tokens at a time"):
        tokens(path, inputs=fixed)


def test_npz_files_one_sample_each(tmp_path: Path) -> None:
    for n in (2, 0, 1):
        np.savez(tmp_path / f"{n}.npz", x=np.full((1, 8), n, np.float32), flag=np.ones(1, bool))
    (tmp_path / "notes.md").write_text("not a sample")
    opened = feeds(tmp_path)
    for _ in range(2):  # can be gone through again
        assert [sample["x"][0, 0] for sample in opened.samples] == [0, 1, 2]
    assert [s["x"][0, 0] for s in feeds(tmp_path, max_samples=2).samples] == [0, 1]
    assert [s["x"][0, 0] for s in feeds(str(tmp_path / "2.npz")).samples] == [2]
    assert [s["x"][0, 0] for s in opened.verification] == [0]


def test_iterables_lose_no_sample_to_the_first_look() -> None:
    samples = [{**SAMPLE, "x": np.full((1, 8), n, np.float32)} for n in range(6)]
    drawn: list[int] = []

    def generator() -> Any:
        for n, sample in enumerate(samples):
            drawn.append(n)
            yield sample

    opened = feeds(generator())
    assert drawn == [0]
    assert [s["x"][0, 0] for s in opened.samples] == [0, 1, 2, 3]
    assert drawn == [0, 1, 2, 3]  # max_samples, and not one more
    # The walk that quantizes goes through them after the statistics did.
    assert [s["x"][0, 0] for s in opened.samples] == [0, 1, 2, 3]
    assert drawn == [0, 1, 2, 3]
    for given in (samples, tuple(samples)):
        opened = feeds(given)
        for _ in range(2):
            assert [s["x"][0, 0] for s in opened.samples] == [0, 1, 2, 3]


def test_an_unmodified_calibration_data_reader() -> None:
    quantization = pytest.importorskip("onnxruntime.quantization.calibrate")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter([SAMPLE, SAMPLE, SAMPLE])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    assert len(list(feeds(Reader()).samples)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, r"lacks the input x float32 \[batch, 8\]; it holds flag"),
        ({"y": np.zeros(1)}, 'holds "y", which is no input of the model; its inputs are flag, x'),
        ({"x": np.zeros((2, 8))}, "holds x float64.*wants x float32.*the dtype differs"),
        ({"x": np.zeros(8, np.float32)}, "holds .*: the rank differs"),
        ({"x": np.zeros((2, 9), np.float32)}, "holds .*: a dimension must be 8, not 9"),
    ],
)
def test_samples_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    sample = {name: a for name, a in {**SAMPLE, **change}.items() if a is not None}
    with pytest.raises(FptqError, match=f"calibration sample 1 {message}"):
        feeds([sample])
    path = tmp_path / "bad.npz"
    np.savez(path, **sample)
    with pytest.raises(FptqError, match=rf"bad\.npz {message}"):
        feeds(path)
    late = feeds([SAMPLE, sample])
    with pytest.raises(FptqError, match=f"calibration sample 2 {message}"):
        list(late.samples)


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match="not one sample"):
        feeds([])
    with pytest.raises(FptqError, match=r"holds no \.npz file"):
        feeds(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(FptqError, match=r"calibration text .* is empty"):
        tokens(empty)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=r"no calibration data at missing\.txt"):
        tokens("missing.txt")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(FptqError, match=r"a\.csv: the name must end in"):
        tokens(tmp_path / "a.csv")
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(FptqError, match=r"cannot read .*a\.npz"):
        feeds(tmp_path / "a.npz")
    with pytest.raises(FptqError, match="cannot be a dict"):
        feeds(SAMPLE)
    with pytest.raises(FptqError, match="cannot be a int"):
        feeds(3)
    with pytest.raises(FptqError, match="sample 1 is a int, not a dict"):
        feeds([3])


def test_text_needs_a_language_model_and_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=r"no input_ids.*x float32 \[batch, 8\]"):
        source(HELDOUT, ENCODER)
    with pytest.raises(FptqError, match=r"no tokenizer\.json"):
        tokens(HELDOUT, model_folder=tmp_path)
    with pytest.raises(FptqError, match="ids up to 2047 but the model knows only 100"):
        tokens(HELDOUT, vocab_size=100)


def test_a_pickle_in_npz_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FptqError, match="cannot read"):
        feeds(path)


def test_jsonl_text_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"story": "Once upon a time"}\n')
    ids = tokens(path, text_field="story").windows[0]
    assert load_tokenizer(DEMO).decode(ids.tolist()).strip() == "Once upon a time"
    with pytest.raises(FptqError, match='no field "text"'):
        tokens(path)
    shutil.copy(path, tmp_path / "B.JSONL")  # a suffix is a suffix in any case
    again = tokens(tmp_path / "B.JSONL", text_field="story").windows[0]
    np.testing.assert_array_equal(again, ids)
