"""Samples that the model writes itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.command_line import MODEL

from fptq_onnx.calibration import open_samples
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.generated import without_loops, write_windows
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.runtime.decoder import Cache, Step, open_decoder

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


class Chain:
    """A decoder whose next token is the last one plus one, for certain; id 5 ends a text."""

    class io:
        fixed_batch: int | None = None

    def __init__(self, vocabulary: int = 8, *, nan: bool = False) -> None:
        self.vocabulary, self.nan = vocabulary, nan
        self.fed: list[tuple[int, int]] = []

    def forward(self, ids: np.ndarray, cache: Cache | None = None) -> Step:
        self.fed.append(ids.shape)
        logits = np.full((*ids.shape, self.vocabulary), -1e9, np.float32)
        np.put_along_axis(logits, ((ids + 1) % self.vocabulary)[..., None], 0, axis=-1)
        if self.nan:
            logits[-1, -1, 0] = np.nan
        length = (cache.length if cache else 0) + ids.shape[1]
        return Step(logits, Cache(length, len(ids), {}), {})


def starts(*firsts: tuple[int, int], length: int = 8) -> list[np.ndarray]:
    return [np.array([*first, *[7] * (length - 2)], np.int64) for first in firsts]


def test_the_model_goes_on_from_the_first_two_tokens() -> None:
    chain = Chain()
    first, second = write_windows(chain, starts((1, 2), (1, 0)), np.random.default_rng(0))  # type: ignore[arg-type]
    assert first.tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert second.tolist() == [1, 0, 1, 2, 3, 4, 5, 6]
    assert chain.fed == [(2, 2)] + [(2, 1)] * 5  # with the cache, one token at a time


def test_a_new_text_begins_after_an_end() -> None:
    (window,) = write_windows(
        Chain(), starts((1, 3)), np.random.default_rng(0), prefix=(1,), eos={5}
    )  # type: ignore[arg-type]
    assert window.tolist() == [1, 3, 4, 5, 1, 2, 3, 4]


def test_a_new_text_begins_with_all_that_stands_before_one() -> None:
    # Of several ids, one of which (5) ends a text where the model writes it.
    begin = np.array([5, 1, 3, *[7] * 7], np.int64)
    (window,) = write_windows(
        Chain(),
        [begin],
        np.random.default_rng(0),
        prefix=(5, 1),
        eos={5},  # type: ignore[arg-type]
    )
    assert window.tolist() == [5, 1, 3, 4, 5, 5, 1, 2, 3, 4]


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    (window,) = write_windows(Chain(), starts((1, 2)), np.random.default_rng(0), known=4)  # type: ignore[arg-type]
    assert window.max() < 4


def test_a_fixed_batch_is_fed_whole() -> None:
    chain = Chain()
    chain.io = type("io", (), {"fixed_batch": 2})  # type: ignore[misc,assignment]
    windows = write_windows(chain, starts((1, 2), (1, 3), (1, 4)), np.random.default_rng(0))  # type: ignore[arg-type]
    assert [window[1] for window in windows] == [2, 3, 4]
    assert {shape[0] for shape in chain.fed} == {2}


def test_short_windows_stay_as_they_are() -> None:
    window = np.array([1, 6], np.int64)
    assert write_windows(Chain(), [window], np.random.default_rng(0))[0].tolist() == [1, 6]  # type: ignore[arg-type]


def test_nan_is_refused() -> None:
    with pytest.raises(FptqError, match="NaN for the next token"):
        write_windows(Chain(nan=True), starts((1, 2)), np.random.default_rng(0))  # type: ignore[arg-type]


def test_tokens_are_drawn_from_the_models_own_distribution() -> None:
    """Frequencies of 4000 draws against softmax: 5 standard deviations of a binomial."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    class Fixed(Chain):
        def forward(self, ids: np.ndarray, cache: Cache | None = None) -> Step:
            rows = np.broadcast_to(logits, (*ids.shape, 4)).astype(np.float32)
            return Step(rows, Cache(1, len(ids), {}), {})

    windows = write_windows(Fixed(), starts((0, 0), length=4002), np.random.default_rng(0))  # type: ignore[arg-type]
    counts = np.bincount(windows[0][2:], minlength=4)
    p = np.exp(logits)
    assert (np.abs(counts - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p))).all()


def test_samples_are_likely_where_random_tokens_are_not() -> None:
    loaded, decoder = load_model(MODEL), open_decoder(MODEL)

    def nll(kind: str) -> float:
        samples = Samples(kind, max_samples=4, max_seq_len=64)
        source = samples.open(loaded)
        assert isinstance(source, TokenWindows) and samples.kind == kind
        assert len(source.windows) == 4 and len(source.heldout) == 8
        ids = np.stack(source.windows)
        assert (ids[:, 0] == 1).all()
        logits = decoder.forward(ids).logits
        assert logits is not None
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_p[:, 1:-1], ids[:, 2:, None], -1)
        return float(-picked.mean())

    assert nll("generated") < 4 < nll("random")  # the model's entropy is near 2.6, log 2048 is 7.6


def test_a_model_without_cache_gets_random_tokens() -> None:
    shared = SHARED / "onnx" / "qwen3-dynamo"
    if not shared.is_dir():
        pytest.skip("no export without a KV cache here")
    samples = Samples("generated", max_samples=2, max_seq_len=16)
    samples.open(load_model(shared))
    assert samples.kind == "random"


def test_a_window_that_repeats_itself_gives_way_to_a_random_one(rng: np.random.Generator) -> None:
    text = "Once upon a time a hen and a bee were seen near the tree. " * 3
    fine = [np.frombuffer(text.encode(), np.uint8).astype(np.int64), np.arange(40), np.arange(3)]
    loops = [np.full(40, 7), np.tile([1, 2, 3, 4], 10), np.tile([5, 6], 20)]
    mixed = np.concatenate([np.arange(24), np.full(40, 9)])  # more text than loop comes through
    drawn = [rng.integers(0, 99, len(window)) for window in (*fine, *loops, mixed)]
    chosen, count = without_loops([*fine, *loops, mixed], drawn)
    assert count == 3
    for index, window in enumerate((*fine, *loops, mixed)):
        wanted = drawn[index] if 3 <= index < 6 else window
        assert chosen[index] is wanted


def test_samples_of_a_model_that_only_repeats_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat(decoder: object, starts: list[np.ndarray], *rest: object, **options: object) -> list:
        return [np.full_like(start, 9) if i else start for i, start in enumerate(starts)]

    monkeypatch.setattr(open_samples, "write_windows", repeat)
    loaded = load_model(MODEL)
    samples, random = Samples(max_samples=3, max_seq_len=32), Samples("random", 3, 32)
    source, drawn = samples.open(loaded), random.open(loaded)
    assert isinstance(source, TokenWindows) and isinstance(drawn, TokenWindows)
    for one, other in zip(source.windows, drawn.windows, strict=True):
        np.testing.assert_array_equal(one, other)
    assert samples.describe()["random_for_loops"] == len(drawn.windows) + len(drawn.heldout) - 1
    assert random.describe()["random_for_loops"] == 0
