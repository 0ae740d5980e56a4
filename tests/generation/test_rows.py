"""Rows of every kind give the logits of a full forward run, whoever else is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.command_line import MODEL

from fptq_onnx.generation.kv.base import SequenceCache
from fptq_onnx.generation.kv.left_padded import LeftPadded
from fptq_onnx.generation.kv.no_cache import NoCache
from fptq_onnx.generation.kv.open import GenerationModel, open_generation_model
from fptq_onnx.generation.kv.per_sequence import PerSequence
from fptq_onnx.generation.kv.shared_buffer import SharedBuffer
from fptq_onnx.runtime.decoder import Decoder, open_decoder

KINDS = ["shared", "separate", "refed"]


@pytest.fixture(scope="module")
def reference() -> Decoder:
    return open_decoder(MODEL, threads=1)


@pytest.fixture(scope="module")
def opened() -> GenerationModel:
    return open_generation_model(MODEL, threads=1)


def make(kind: str, opened: GenerationModel, max_sequences: int = 4) -> SequenceCache:
    if kind == "shared":
        rows = opened.cache(max_sequences=max_sequences, max_length=256)
        assert isinstance(rows, SharedBuffer)
        return rows
    return {"separate": PerSequence, "refed": NoCache}[kind](
        opened.decoder, max_sequences=max_sequences
    )


def close(got: NDArray[np.float32], reference: Decoder, ids: list[int]) -> None:
    logits = reference.forward(np.array([ids])).logits
    assert logits is not None
    # Caches and batches sum in another order: float32 rounding of a few hundred terms.
    np.testing.assert_allclose(got, logits[0, -1], atol=2e-5 * np.abs(logits).max())


def test_the_embedded_model_shares_and_is_cut(opened: GenerationModel) -> None:
    assert opened.shares
    assert opened.last_only > 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_join_go_on_and_leave(
    kind: str, opened: GenerationModel, reference: Decoder, rng: np.random.Generator
) -> None:
    join_go_on_and_leave(make(kind, opened), reference, rng)


@pytest.mark.parametrize("name", ["llama-optimum", "gpt2-optimum", "llama-dynamo-past"])
def test_padded_rows_join_go_on_and_leave(
    shared_exports: Path, name: str, rng: np.random.Generator
) -> None:
    if not (shared_exports / name).is_dir():
        pytest.skip(f"no {name} here")
    opened = open_generation_model(shared_exports / name, threads=1)
    rows = opened.cache(max_sequences=4)
    assert isinstance(rows, LeftPadded)
    join_go_on_and_leave(rows, open_decoder(shared_exports / name, threads=1), rng)


def join_go_on_and_leave(rows: SequenceCache, reference: Decoder, rng: np.random.Generator) -> None:
    vocabulary = reference.io.vocab_size or 0
    texts = [rng.integers(3, vocabulary, n).tolist() for n in (5, 40, 1, 17)]
    held: list[list[int]] = []

    def step() -> None:
        new = rng.integers(3, vocabulary, len(held)).tolist()
        logits = rows.decode(new)
        assert logits.shape == (len(held), vocabulary)
        for text, token, one in zip(held, new, logits, strict=True):
            text.append(token)
            close(one, reference, text)
        assert list(rows.lengths) == [len(text) for text in held]

    def leave(place: int) -> None:
        rows.remove(place)
        last = held.pop()
        if place < len(held):
            held[place] = last

    for text in texts[:3]:
        close(rows.append(text), reference, text)
        held.append(list(text))
        step()
    leave(0)
    step()
    close(rows.append(texts[3]), reference, texts[3])
    held.append(list(texts[3]))
    step()
    more = rng.integers(3, vocabulary, 7).tolist()
    close(rows.extend(1, more), reference, held[1] + more)
    held[1] += more
    step()
    rows.truncate(0, 3)
    del held[0][3:]
    step()
    leave(2)
    leave(1)
    step()
    leave(0)
    assert rows.lengths == ()
    close(rows.append(texts[1]), reference, texts[1])


@pytest.mark.parametrize("kind", KINDS[:2])
def test_long_prompts_are_fed_in_pieces(
    kind: str, opened: GenerationModel, reference: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fptq_onnx.generation.kv.base.CHUNK", 16)
    text = np.random.default_rng(1).integers(3, 2048, 50).tolist()
    rows = make(kind, opened)
    close(rows.append(text), reference, text)
    assert rows.lengths == (50,)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-genai", SharedBuffer), ("phi3-genai", SharedBuffer), ("qwen2-genai", SharedBuffer),
        ("llama-tied-genai-shared", SharedBuffer), ("llama-optimum", LeftPadded),
        ("mistral-optimum", LeftPadded), ("llama-dynamo-past", LeftPadded),
        ("gpt2-optimum", LeftPadded), ("opt-optimum", LeftPadded),
        ("bloom-optimum", PerSequence), ("gemma2-optimum", PerSequence),
    ],
)  # fmt: skip
def test_real_exports_in_a_batch(
    shared_exports: Path, name: str, kind: type, rng: np.random.Generator
) -> None:
    folder = shared_exports / name
    if not folder.is_dir():
        pytest.skip(f"no {name} here")
    reference, opened = open_decoder(folder, threads=1), open_generation_model(folder, threads=1)
    rows = opened.cache(max_sequences=3, max_length=64)
    assert type(rows) is kind
    held = [rng.integers(3, 500, n).tolist() for n in (4, 11, 7)]
    for text in held:
        close(rows.append(text), reference, text)
    for _ in range(3):
        new = rng.integers(3, 500, 3).tolist()
        for text, token, one in zip(held, new, rows.decode(new), strict=True):
            text.append(token)
            close(one, reference, text)
