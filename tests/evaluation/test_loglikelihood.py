import math

import numpy as np
import pytest
from support.bigrams import bigram
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.loglikelihood import encode_pair, score_continuation, score_continuations
from fptq_onnx.text.tokenizer import TextTokenizer

# softmax([ln 3, 0]) = [3/4, 1/4]: after 0 comes 0; after 1 comes 1.
LEANING = [[math.log(3), 0.0], [0.0, math.log(3)]]


def test_by_hand() -> None:
    model = bigram(LEANING)
    near = {"rel": 1e-6}  # float32's ln 3
    both = score_continuation(model, [0, 1], [1, 0])
    assert both.log_likelihood == pytest.approx(math.log(0.75) + math.log(0.25), **near)
    assert not both.greedy
    likely = score_continuation(model, [1, 0], [0, 0])
    assert likely.log_likelihood == pytest.approx(2 * math.log(0.75), **near)
    assert likely.greedy and likely.shortened == 0


def test_one_wrong_token_anywhere_is_not_greedy() -> None:
    model = bigram(LEANING)
    assert not score_continuation(model, [0], [1, 1, 1]).greedy  # wrong at the first
    assert not score_continuation(model, [0], [0, 0, 1]).greedy  # wrong at the last
    assert score_continuation(model, [0], [0, 0, 0]).greedy


def test_a_long_context_loses_its_start() -> None:
    model = bigram(LEANING)
    for context, room, lost in (([0, 0, 0, 1], 2, 3), ([0, 0, 0, 1], 5, 0), ([0, 0, 0, 1], 4, 1)):
        score = score_continuation(model, context, [1, 1], max_length=room)
        assert score.shortened == lost
        assert score.log_likelihood == pytest.approx(2 * math.log(0.75), rel=1e-6)
    with pytest.raises(FptqError, match="continuation of 3 tokens does not fit"):
        score_continuation(model, [0], [1, 1, 1], max_length=2)


def test_a_graph_of_fixed_length_is_padded() -> None:
    loose, fixed = bigram(LEANING), bigram(LEANING, "1, 8")
    assert score_continuation(fixed, [0, 1], [1, 0]) == score_continuation(loose, [0, 1], [1, 0])


def test_nothing_to_score_and_tokens_without_a_logit() -> None:
    with pytest.raises(FptqError, match="has no tokens"):
        score_continuation(bigram(LEANING), [], [1])
    with pytest.raises(FptqError, match="has no tokens"):
        score_continuation(bigram(LEANING), [1], [])
    with pytest.raises(FptqError, match="the text has the token 2"):
        score_continuation(bigram(LEANING), [1], [2])


def test_the_continuation_is_the_suffix_of_the_whole() -> None:
    tokenizer = TextTokenizer.open(MODEL, None)
    whole = tokenizer.tokenizer.encode("Tom had a red ball", add_special_tokens=False).ids
    context, word = encode_pair(tokenizer, "Tom had a red", " ball")
    assert [1, *whole] == [*context, *word]
    assert tokenizer.tokenizer.decode(word) == " ball" and context[0] == 1
    # White space at the end of the context is the continuation's: the split does not matter.
    assert encode_pair(tokenizer, "Tom had a red ", "ball") == (context, word)
    assert encode_pair(tokenizer.alone(), "Tom had a red", " ball") == (context[1:], word)


def test_choices_that_share_what_is_fed_are_fed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = bigram(LEANING)
    fed = []
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda ids: fed.append(ids.tolist()) or forward(ids))
    choices = [[0], [1], [0, 1], [0, 0], [1, 1], [0]]
    scores = list(score_continuations(decoder, [1, 1], choices))
    assert fed == [[[1, 1]], [[1, 1, 0]], [[1, 1, 1]], [[1, 1]]]
    assert scores == [score_continuation(decoder, [1, 1], choice) for choice in choices]


def test_the_same_as_step_by_step(rng: np.random.Generator) -> None:
    """Whole and token by token with the cache: two runs of the embedded model."""
    from fptq_onnx.runtime.decoder import open_decoder

    decoder = open_decoder(MODEL, threads=1)
    ids = [1, *map(int, rng.integers(3, 2048, 20))]
    cache, total = None, 0.0
    for position, token in enumerate(ids[:-1]):
        step = decoder.forward(np.array([[token]]), cache)
        cache = step.cache
        if position >= 14:
            row = step.logits[0, -1].astype(np.float64)
            total += row[ids[position + 1]] - np.log(np.exp(row).sum())
    score = score_continuation(decoder, ids[:15], ids[15:])
    # float32 logits of about 10: a relative error of some 1e-6 each.
    assert score.log_likelihood == pytest.approx(total, abs=1e-4)
