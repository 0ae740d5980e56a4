import math

import pytest
from support.bigrams import bigram
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.lambada import Passage, lambada_metrics, score_passages, split_passages
from fptq_onnx.evaluation.loglikelihood import Score
from fptq_onnx.text.tokenizer import TextTokenizer


def test_a_passage_is_cut_at_its_last_space() -> None:
    tokenizer = TextTokenizer.open(MODEL, None)
    first, second = split_passages(["Tom had a\nred ball", "the  end"], tokenizer)
    assert tokenizer.tokenizer.decode(first.context[1:]) == "Tom had a\nred"
    assert tokenizer.tokenizer.decode(first.word) == " ball"
    assert tokenizer.tokenizer.decode(second.word) == "  end"
    with pytest.raises(FptqError, match="passage 2 is one word"):
        split_passages(["two words", "one"], tokenizer)


def test_figures_by_hand() -> None:
    right, wrong = Score(-1.0, True, 0), Score(-3.0, False, 4)
    alone = lambada_metrics([(right,), (wrong,), (right,), (right,)])
    assert (alone.passages, alone.shortened) == (4, 1)
    assert alone.accuracy.value == 0.75
    assert alone.accuracy.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert alone.perplexity.value == pytest.approx(math.exp(6 / 4))
    assert alone.accuracy_reference is None and alone.accuracy_change is None
    pair = lambada_metrics([(wrong, right), (wrong, wrong), (right, right), (right, right)])
    assert pair.accuracy_reference is not None and pair.accuracy_change is not None
    assert (pair.accuracy.value, pair.accuracy_reference.value) == (0.5, 0.75)
    assert pair.accuracy_change.value == -0.25
    # Differences -1, 0, 0, 0: deviation 0.5, over sqrt(4).
    assert pair.accuracy_change.standard_error == pytest.approx(0.25)


def test_the_model_that_fails_is_named() -> None:
    good, bad = bigram([[0.0, 1.0], [0.0, 1.0]]), bigram([[0.0], [0.0]])
    passages = [Passage([0], [0]), Passage([0], [1])]
    with pytest.raises(FptqError, match="the reference model on passage 2 has logits for 1"):
        list(score_passages([good, bad], passages, None))
    with pytest.raises(FptqError, match="the model on passage 2 has logits for 1"):
        list(score_passages([bad], passages, None))
