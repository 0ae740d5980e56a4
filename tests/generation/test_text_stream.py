from __future__ import annotations

import itertools

import pytest
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.sequence import Request
from fptq_onnx.generation.text_stream import StopStrings, TextStream
from fptq_onnx.text.windows import load_tokenizer


def fed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    watch = StopStrings(stops)
    out = [watch.push(piece) for piece in pieces]
    return [*out, watch.finish()], watch.found


def test_nothing_of_a_stop_string_is_given_out() -> None:
    assert fed(["END"], ["one EN", "D two"]) == (["one ", "", ""], True)
    assert fed(["END"], ["one E", "N", "x"]) == (["one ", "", "ENx", ""], False)
    assert fed(["END"], ["one EN"]) == (["one ", "EN"], False)
    assert fed(["b", "abc"], ["xabc"]) == (["x", ""], True)  # the one that begins first
    with pytest.raises(FptqError, match="a stop string is empty"):
        Request((1,), stop=("x", ""))


def test_any_cut_into_pieces_gives_the_same_text() -> None:
    text, stops = "aabaabaaac", ["aaac", "zz"]
    for places in itertools.combinations(range(1, len(text)), 3):
        cuts = [0, *places, len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        given, found = fed(stops, pieces)
        assert ("".join(given), found) == ("aabaab", True)


def test_a_stop_string_across_tokens() -> None:
    tokenizer = load_tokenizer(MODEL)
    text = "The dog ran. The cat sat. The end."
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = TextStream(tokenizer, [1], ["cat sat"])
    given = ""
    for token in ids:
        given += stream.push(token)
        if stream.stopped:
            break
    assert given + stream.finish() == tokenizer.decode(ids).split("cat sat")[0]
