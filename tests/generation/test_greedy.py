from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import Decoder, open_decoder
from fptq_onnx.text.detokenizer import StreamingDetokenizer
from fptq_onnx.text.windows import load_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "models" / "tinystories-7m"


@pytest.fixture(scope="module")
def demo() -> Decoder:
    return open_decoder(DEMO, threads=1)


def encode(text: str) -> list[int]:
    return [1, *load_tokenizer(DEMO).encode(text, add_special_tokens=False).ids]


def test_greedy_with_the_cache_is_greedy_without(demo: Decoder) -> None:
    prompt = encode("Once upon a time there was a little dog")
    got = list(generate(demo, prompt, 24))
    assert len(got) == 24
    ids = list(prompt)
    for token in got:  # the whole text anew for every token
        logits = demo.forward(np.array([ids])).logits[0, -1]
        # The cache sums in another order, so a near tie could fall either way: the token must be
        # the best to within float32 rounding of a few hundred terms.
        assert logits.max() - logits[token] <= 1e-5 * np.abs(logits).max()
        ids.append(token)


def test_stops_at_eos_and_does_not_give_it(demo: Decoder) -> None:
    prompt = encode("Once upon a time")
    free = list(generate(demo, prompt, 20))
    stop = free[7]
    assert list(generate(demo, prompt, 20, eos=[stop])) == free[: free.index(stop)]


def test_stops_at_the_context_length(demo: Decoder) -> None:
    prompt = encode("Once upon a time")
    room = 6
    tokens = list(generate(demo, prompt, 100, context_length=len(prompt) + room))
    assert len(tokens) == room
    assert list(generate(demo, prompt, 0)) == []
    with pytest.raises(FptqError, match="the model's context is 5; shorten it"):
        next(generate(demo, [1] * 5, 1, context_length=5))


def test_no_cache_or_no_prompt(demo: Decoder) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (int64[B, S] input_ids) => (float[B, S, 2] logits) <float[2, 2] t = {0, 1, 1, 0}>
    { logits = Gather(t, input_ids) }"""
    plain = Decoder(ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString()))
    with pytest.raises(FptqError, match="no KV cache"):
        next(generate(plain, [1], 1))
    with pytest.raises(FptqError, match="the prompt is empty"):
        next(generate(demo, [], 1))


def byte_level() -> Tokenizer:
    return load_tokenizer(DEMO)


def byte_fallback() -> Tokenizer:
    """A SentencePiece-like tokenizer: words begin with a low line, rare characters are bytes."""
    pieces = ["<unk>", "</s>", "▁a", "▁b", "c", *(f"<0x{n:02X}>" for n in range(256))]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def stream(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer, context or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


def byte_ids(data: bytes) -> list[int]:
    return [5 + byte for byte in data]


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂 done", "line\nline\n", "🙂"])
def test_characters_of_several_byte_level_tokens(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_byte_fallback_is_held_to_the_end_of_the_run() -> None:
    tokenizer = byte_fallback()
    euro = byte_ids("€".encode())
    pieces = stream(tokenizer, [2, *euro, 3, 4])
    assert pieces == ["a", "", "", "", "€ b", "c", ""]
    assert "".join(stream(tokenizer, [2, *euro])) == "a€"
    # A valid character followed by a stray byte: the run as a whole is invalid, and nothing of it
    # had been shown as valid before.
    ids = [2, *euro, *byte_ids(b"\x80"), 3]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_leading_space_survives_after_a_prompt() -> None:
    tokenizer = byte_fallback()
    assert "".join(stream(tokenizer, [3, 2], context=[2])) == " b a"
    assert "".join(stream(tokenizer, [3, 2])) == "b a"  # a text's first space is the tokenizer's


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("character", ["é", "€", "🙂"])
def test_a_prompt_that_ends_inside_a_character(
    make: Callable[[], Tokenizer], character: str
) -> None:
    tokenizer = make()
    if make is byte_level:
        ids, end = tokenizer.encode(character, add_special_tokens=False).ids, "xy"
        rest = tokenizer.encode("xy", add_special_tokens=False).ids
        before = tokenizer.encode("The dog", add_special_tokens=False).ids
    else:
        ids, end, before, rest = byte_ids(character.encode()), " bc", [2, 3], [3, 4]
    assert len(ids) > 1
    for cut in range(1, len(ids)):
        context = [*before, *ids[:cut]]
        assert "".join(stream(tokenizer, [*ids[cut:], *rest], context)) == character + end
        assert "".join(stream(tokenizer, ids[cut:], context)) == character
        # It never completes: nothing of the prompt is repeated, nothing of the answer lost.
        assert "".join(stream(tokenizer, rest, context)) == end
        assert stream(tokenizer, [], context) == [""]


def test_what_never_completes_is_shown_at_the_end_and_special_tokens_never() -> None:
    tokenizer = byte_fallback()
    assert stream(tokenizer, [2, 1, *byte_ids(b"\xe2")]) == ["a", "", "", "\ufffd"]


def test_long_streams_agree_with_one_decoding() -> None:
    tokenizer = byte_level()
    ids = np.random.default_rng(0).integers(3, 2048, 500).tolist()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
