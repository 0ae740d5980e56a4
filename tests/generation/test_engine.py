"""Tokens of the engine are those of the plain loop, alone and among others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Engine, Generation, Request
from fptq_onnx.generation.greedy import generate
from fptq_onnx.generation.kv.left_padded import LeftPadded
from fptq_onnx.generation.kv.no_cache import NoCache
from fptq_onnx.generation.kv.open import open_generation_model
from fptq_onnx.generation.kv.per_sequence import PerSequence
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.generation.sampling import SamplingSettings
from fptq_onnx.runtime.decoder import Decoder, open_decoder

PROMPTS = ["Once upon a time", "The little dog ran to the park and", "Tim", "One day a girl saw"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.open(MODEL, threads=1)


@pytest.fixture(scope="module")
def plain() -> Decoder:
    return open_decoder(MODEL, threads=1)


def request(model: LanguageModel, prompt: str, tokens: int = 24, **settings: object) -> Request:
    return Request(model.encode(prompt), tokens, **settings)  # type: ignore[arg-type]


def run_all(engine: Engine) -> None:
    while engine.active:
        engine.step()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_the_plain_loops(
    model: LanguageModel, plain: Decoder, prompt: str
) -> None:
    expected = list(generate(plain, model.encode(prompt), 24, eos=model.special.eos))
    deltas = list(model.engine().stream(request(model, prompt)))
    assert [delta.token for delta in deltas if delta.token is not None] == expected
    text = model.tokenizer.decode([*model.encode(prompt), *expected])
    given = "".join(delta.text for delta in deltas)
    assert model.tokenizer.decode(list(model.encode(prompt))) + given == text
    assert deltas[-1].generation.text == given


def test_batch_of_four_gives_the_tokens_of_one(model: LanguageModel) -> None:
    alone = []
    for prompt in PROMPTS:
        *_, last = model.engine().stream(request(model, prompt))
        alone.append(last.generation.tokens)
    engine = model.engine(max_sequences=4)
    together: list[Generation] = []
    for prompt in PROMPTS:  # each joins while the others are on their way
        together.append(engine.add(request(model, prompt)).generation)
        engine.step()
    run_all(engine)
    assert [generation.tokens for generation in together] == alone
    assert all(generation.finish_reason == "length" for generation in together)


def test_drawn_tokens_do_not_depend_on_the_others(model: LanguageModel) -> None:
    settings = {"sampling": SamplingSettings(temperature=0.9, top_k=40, seed=7)}
    *_, alone = model.engine().stream(request(model, PROMPTS[0], **settings))
    engine = model.engine(max_sequences=2)
    engine.add(request(model, PROMPTS[1], 5))
    generation = engine.add(request(model, PROMPTS[0], **settings)).generation
    run_all(engine)
    assert generation.tokens == alone.generation.tokens


def test_those_that_end_make_room(model: LanguageModel) -> None:
    engine = model.engine(max_sequences=2)
    short = engine.add(request(model, PROMPTS[0], 3)).generation
    long = engine.add(request(model, PROMPTS[1], 24)).generation
    assert engine.room == 0
    with pytest.raises(FptqError, match="holds 2 sequences already"):
        engine.add(request(model, PROMPTS[2]))
    reasons = [delta.finish_reason for _ in range(2) for delta in engine.step()]
    assert reasons == [None, None, "length", None]
    assert (short.finish_reason, engine.active, engine.room) == ("length", (long,), 1)
    engine.cancel(long)
    engine.cancel(long)
    assert (long.finish_reason, engine.active, engine.room) == ("cancelled", (), 2)


def test_end_tokens_and_stop_strings(model: LanguageModel) -> None:
    *_, free = model.engine().stream(request(model, PROMPTS[0]))
    tokens, text = free.generation.tokens, free.generation.text
    engine = Engine(model.model.cache(max_length=64), tokenizer=model.tokenizer, eos=[tokens[5]])
    *_, last = engine.stream(request(model, PROMPTS[0]))
    assert last.generation.tokens == tokens[: tokens.index(tokens[5])]
    assert (last.token, last.finish_reason) == (None, "stop")
    *_, last = engine.stream(request(model, PROMPTS[0], ignore_eos=True))
    assert last.generation.tokens == tokens
    word = text.split()[4]
    *_, last = model.engine().stream(request(model, PROMPTS[0], stop=(word, "never comes")))
    assert last.generation.text == text[: text.index(word)]
    assert last.finish_reason == "stop"


def test_context_and_limits(model: LanguageModel) -> None:
    prompt = model.encode(PROMPTS[0])
    engine = model.engine(max_length=len(prompt) + 6)
    (none,) = engine.stream(Request(prompt, 0))
    assert (none.token, none.text, none.finish_reason, none.generation.tokens) == (
        None, "", "length", []
    )  # fmt: skip
    *_, last = engine.stream(Request(prompt))
    assert (len(last.generation.tokens), last.finish_reason) == (6, "length")
    for bad, saying in (
        (Request(prompt * 9), "shorten it"),
        (Request(()), "the prompt is empty"),
        (Request(prompt, -1), "must not be negative"),
    ):
        with pytest.raises(FptqError, match=saying):
            engine.add(bad)
    assert engine.active == ()


def test_what_the_cache_holds_is_not_fed_again(model: LanguageModel) -> None:
    engine = model.engine()
    *_, first = engine.stream(request(model, PROMPTS[0], 8))
    longer = (*first.generation.request.prompt, *first.generation.tokens, *model.encode("And")[1:])
    *_, again = engine.stream(Request(longer, 12))
    # The last token of the first answer was chosen, but not yet fed.
    assert again.generation.reused == len(longer) - len(model.encode("And")[1:]) - 1
    *_, fresh = model.engine().stream(Request(longer, 12))
    assert fresh.generation.reused == 0
    assert again.generation.tokens == fresh.generation.tokens
    *_, other = engine.stream(request(model, PROMPTS[3], 12))  # shares BOS alone
    *_, alone = model.engine().stream(request(model, PROMPTS[3], 12))
    assert other.generation.tokens == alone.generation.tokens


def test_the_same_prompt_again_is_fed_two_tokens(model: LanguageModel) -> None:
    """One token alone is a decode step, whose sums round otherwise: a draw would notice."""
    engine = model.engine()
    prompt = model.encode("The sun was hot. Lily wanted")
    for length, reused in ((8, 6), (3, 1), (2, 0), (1, 0)):
        asked = Request(prompt[:length], 3)
        *_, first = engine.stream(asked)
        *_, again = engine.stream(asked)
        assert again.generation.reused == reused
        assert again.generation.tokens == first.generation.tokens


@pytest.mark.parametrize("kind", ["shared", "separate", "refed"])
def test_a_prompt_fed_in_pieces_among_others(model: LanguageModel, kind: str) -> None:
    decoder = model.model.decoder
    rows = {
        "shared": lambda: model.model.cache(max_sequences=4, max_length=256),
        "separate": lambda: PerSequence(decoder, max_sequences=4),
        "refed": lambda: NoCache(decoder, max_sequences=4),
    }[kind]
    long = model.encode(
        "One day a girl saw a big dog. The dog was sad. It had lost a red ball in the park, and "
        "all the other dogs had gone home with their moms. The girl"
    )
    *_, alone = Engine(rows()).stream(Request(long, 10))
    others = []
    for prompt in PROMPTS[:2]:
        *_, last = Engine(rows()).stream(request(model, prompt))
        others.append(last.generation.tokens)
    engine = Engine(held := rows())
    before = engine.add(request(model, PROMPTS[0])).generation
    delta = engine.add(Request(long, 10), at_once=16)
    late = engine.add(request(model, PROMPTS[1])).generation  # joins behind it
    gone = engine.add(Request(long, 10), at_once=5).generation
    assert (delta.token, delta.finish_reason) == (None, None)
    assert engine.unfed(delta.generation) == len(long) - 16
    while engine.unfed(delta.generation) > 1:
        place = engine.active.index(delta.generation)
        assert held.lengths[place] == len(long) - engine.unfed(delta.generation)
        assert [one.generation for one in engine.step()] == [before, late]
        assert delta.generation.tokens == []
        if before.tokens and len(before.tokens) == 3:
            engine.cancel(gone)
        delta = engine.feed(delta.generation, min(16, engine.unfed(delta.generation) - 1))
    (delta,) = [one for one in engine.step() if one.generation is delta.generation]
    assert delta.token == alone.generation.tokens[0]
    run_all(engine)
    assert delta.generation.tokens == alone.generation.tokens
    assert [before.tokens, late.tokens] == others
    assert gone.finish_reason == "cancelled"
    # Left in the middle of its prompt, what was fed can be gone on from.
    engine = Engine(rows())
    engine.cancel(engine.add(Request(long, 10), at_once=20).generation)
    again = engine.add(Request(long, 10)).generation
    assert again.reused == 20
    run_all(engine)
    assert again.tokens == alone.generation.tokens


@pytest.mark.parametrize("name", ["llama-optimum", "gpt2-optimum"])
def test_padded_rows_are_fed_in_pieces(
    shared_exports: Path, name: str, rng: np.random.Generator
) -> None:
    if not (shared_exports / name).is_dir():
        pytest.skip(f"no {name} here")
    opened = open_generation_model(shared_exports / name, threads=1)
    asked = [Request(tuple(rng.integers(3, 500, n).tolist()), 12) for n in (5, 40, 9)]
    alone = []
    for one in asked:
        *_, last = Engine(opened.cache()).stream(one)
        alone.append(last.generation.tokens)
    rows = opened.cache(max_sequences=3)
    assert isinstance(rows, LeftPadded)
    engine = Engine(rows)
    deltas = [engine.add(asked[0]), engine.add(asked[1], at_once=8), engine.add(asked[2])]
    long = deltas[1].generation
    while engine.unfed(long):
        engine.step()
        engine.feed(long, 8)
    run_all(engine)
    assert [delta.generation.tokens for delta in deltas] == alone


def test_a_model_that_gives_nan(model: LanguageModel) -> None:
    class Broken:
        lengths = (3,)
        max_sequences = 1

        def append(self, ids: object) -> np.ndarray:
            return np.full(8, np.nan, np.float32)

    engine = Engine(Broken())  # type: ignore[arg-type]
    with pytest.raises(FptqError, match="NaN"):
        engine.add(Request((1, 2, 3)))
    assert engine.active == ()


def test_nan_for_one_sequence_leaves_the_others_alone() -> None:
    class Sick:
        """Token 7 is always the next, but a sequence fed 5 gets NaN for its second."""

        max_sequences = 3

        def __init__(self) -> None:
            self.rows: list[list[int]] = []

        @property
        def lengths(self) -> tuple[int, ...]:
            return tuple(map(len, self.rows))

        def append(self, ids: list[int]) -> np.ndarray:
            self.rows.append(list(ids))
            return np.eye(8, dtype=np.float32)[7]

        def decode(self, ids: list[int]) -> np.ndarray:
            logits = np.repeat(np.eye(8, dtype=np.float32)[[7]], len(ids), axis=0)
            for number, (row, token) in enumerate(zip(self.rows, ids, strict=True)):
                row.append(token)
                if row[0] == 5:
                    logits[number] = np.nan
            return logits

        def remove(self, row: int) -> None:
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last

    rows = Sick()
    engine = Engine(rows)  # type: ignore[arg-type]
    first, ill, last = (engine.add(Request((id, 1), 4)).generation for id in (3, 5, 4))
    assert [delta.finish_reason for delta in engine.step()] == [None, "failed", None]
    assert "NaN" in str(ill.error)
    assert engine.active == (first, last)
    assert [row[0] for row in rows.rows] == [3, 4]
    run_all(engine)
    assert first.tokens == last.tokens == [7] * 4
    assert (first.error, last.error) == (None, None)
    with pytest.raises(FptqError, match="NaN"):
        list(Engine(Sick()).stream(Request((5, 1), 4)))  # type: ignore[arg-type]
