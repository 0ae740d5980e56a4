"""Greedy generation, and text given out as it becomes certain."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from fptq_onnx.decoder import Decoder, open_decoder
from fptq_onnx.decoder_io import DecoderIO
from fptq_onnx.detokenize import StreamingDetokenizer
from fptq_onnx.errors import FptqError
from fptq_onnx.generate import generate, run_prompt
from fptq_onnx.text import load_tokenizer

DEMO = Path(__file__).resolve().parents[1] / "models" / "tinystories-7m"
PROMPT = [1, 300, 45, 700]


@pytest.fixture(scope="module")
def demo() -> Decoder:
    return open_decoder(DEMO, threads=1)


def test_each_token_is_the_likeliest_after_those_before(demo: Decoder) -> None:
    tokens = list(generate(demo, PROMPT, 12))
    assert len(tokens) == 12
    ids = np.array([PROMPT + tokens])
    logits = demo.forward(ids).logits  # all at once, without a cache
    assert logits is not None
    assert logits[0, len(PROMPT) - 1 : -1].argmax(1).tolist() == tokens


def test_stops_at_eos_without_giving_it_out(demo: Decoder) -> None:
    tokens = list(generate(demo, PROMPT, 12))
    stop = tokens[5]
    assert list(generate(demo, PROMPT, 12, eos=(99999, stop))) == tokens[: tokens.index(stop)]


def test_stops_where_the_context_is_full(demo: Decoder) -> None:
    assert len(list(generate(demo, PROMPT, 12, context_length=7))) == 3
    with pytest.raises(FptqError, match="4 tokens, but the model's context is 4"):
        list(generate(demo, PROMPT, 12, context_length=4))


def test_what_cannot_be_generated_from(demo: Decoder) -> None:
    with pytest.raises(FptqError, match="the prompt is empty"):
        list(generate(demo, [], 3))
    bare = Decoder(demo.session, DecoderIO(demo.io.input_ids, demo.io.logits))
    with pytest.raises(FptqError, match="no KV cache"):
        list(generate(bare, PROMPT, 3))


def test_run_prompt_writes_the_continuation() -> None:
    stream = io.StringIO()
    stats = run_prompt(DEMO, "Once upon a time", 20, stream, threads=1)
    tokenizer = load_tokenizer(DEMO)
    ids = [1, *tokenizer.encode("Once upon a time", add_special_tokens=False).ids]
    tokens = list(generate(open_decoder(DEMO, threads=1), ids, 20, eos=(2,)))
    assert "Once upon a time" + stream.getvalue() == tokenizer.decode(ids + tokens)
    assert (stats.prompt_tokens, stats.tokens) == (len(ids), 20)
    assert stats.prefill_seconds > 0
    assert stats.decode_tokens_per_second is not None and stats.decode_tokens_per_second > 0


def test_run_prompt_begins_from_bos_alone() -> None:
    stream = io.StringIO()
    assert run_prompt(DEMO, "", 1, stream, threads=1).prompt_tokens == 1
    assert stream.getvalue()


def test_run_prompt_without_tokenizer(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    with pytest.raises(FptqError, match=r"no tokenizer\.json"):
        run_prompt(tmp_path, "A", 1, io.StringIO())


TEXT = "It said caf\u00e9, \u4f60\u597d and \U0001f600! Then  two spaces.\n\nEnd"


def pieces_of(tokenizer: tokenizers.Tokenizer, ids: list[int], prompt: int) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer, ids[:prompt])
    pieces = [detokenizer.push(token) for token in ids[prompt:]]
    return [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_streamed_pieces_join_to_the_text(prompt: int) -> None:
    tokenizer = load_tokenizer(DEMO)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert len(ids) > len(TEXT.split())  # byte-level: the emoji alone is several tokens
    pieces = pieces_of(tokenizer, ids, prompt)
    assert tokenizer.decode(ids[:prompt]) + "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 5  # streamed, not held back to the end


def byte_fallback_tokenizer() -> tokenizers.Tokenizer:
    """As SentencePiece's: words with a leading mark, characters not in it as bytes."""
    words = ["<unk>", "\u2581cat", "\u2581sat", "\u2581"]
    vocab = {word: i for i, word in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_byte_fallback_and_the_leading_space() -> None:
    tokenizer = byte_fallback_tokenizer()
    emoji = [4 + byte for byte in "\U0001f600\u00e9".encode()]
    ids = [1, 2, *emoji, 1, 2]
    pieces = pieces_of(tokenizer, ids, 0)
    assert "".join(pieces) == "cat sat\U0001f600\u00e9 cat sat"
    assert pieces[:2] == ["cat", " sat"]
    assert not any("\ufffd" in piece for piece in pieces)
    # After a prompt the first word keeps its space.
    assert "".join(pieces_of(tokenizer, ids, 1)) == " sat\U0001f600\u00e9 cat sat"


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = [1, *(4 + byte for byte in "\U0001f600".encode()[:2])]
    assert "".join(pieces_of(tokenizer, ids, 0)).startswith("cat\ufffd")


def test_bytes_that_are_no_text_spoil_their_whole_run() -> None:
    # The decoder takes a run of byte tokens as a whole: the stray byte after a complete character
    # makes all of them unreadable, so the character must not have been given out before.
    tokenizer = byte_fallback_tokenizer()
    ids = [1, *(4 + byte for byte in "\u00e9".encode()), 4 + 0xF0, 2]
    assert "".join(pieces_of(tokenizer, ids, 0)) == tokenizer.decode(ids)
