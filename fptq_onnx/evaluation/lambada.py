"""LAMBADA: does the model complete a passage with its last word?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.loglikelihood import Score, encode_pair, score_continuation
from fptq_onnx.evaluation.standard_errors import Estimate, exponential, proportion, ratio_of_sums
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Passage:
    """A passage's tokens.

    Attributes:
        context: ids up to the last word, with what the tokenizer puts before a text.
        word: ids of the last word.
    """

    context: list[int]
    word: list[int]


@dataclass(frozen=True)
class LambadaMetrics:
    """How well last words were predicted.

    Attributes:
        passages: passages scored.
        shortened: of those, how many were longer than the model's context and lost their start.
        accuracy: share of passages whose last word is, token by token, the most likely one.
        perplexity: exp of the mean negative log-likelihood (nats) of a last word, all its tokens.
        accuracy_reference: of the reference; None without one.
        perplexity_reference: of the reference; None without one.
        accuracy_change: accuracy minus the reference's; its error is of the passages' differences,
            and so is smaller than that of either. None without a reference.
    """

    passages: int
    shortened: int
    accuracy: Estimate
    perplexity: Estimate
    accuracy_reference: Estimate | None = None
    perplexity_reference: Estimate | None = None
    accuracy_change: Estimate | None = None


def split_passages(documents: Sequence[str], tokenizer: TextTokenizer) -> list[Passage]:
    """Cut the last word, with the space before it, off each document.

    Args:
        documents: one passage each.
        tokenizer: the model's.

    Raises:
        FptqError: a passage without a space, or with a token that the model does not know.
    """
    passages = []
    for number, document in enumerate(documents, start=1):
        context, space, word = document.rpartition(" ")
        if not space:
            raise FptqError(
                f"passage {number} is one word ({document[:30]!r}), so it has no last word to "
                "predict; remove it, or choose --tasks perplexity"
            )
        ids, target = encode_pair(tokenizer, context, space + word)
        if not target:
            raise FptqError(
                f"the last word of passage {number} ({word[:30]!r}) has no tokens of its own; "
                "remove the passage"
            )
        passages.append(Passage(ids, target))
    return passages


def score_passages(
    decoders: Sequence[Decoder], passages: Iterable[Passage], max_length: int | None
) -> Iterator[tuple[Score, ...]]:
    """Score each passage's last word with each model.

    Args:
        decoders: the model, and the reference where there is one.
        passages: one at a time, so that progress can be shown.
        max_length: tokens the models can be fed, None for no limit.

    Raises:
        FptqError: see `score_continuation`.
    """
    for number, passage in enumerate(passages, start=1):
        yield tuple(
            score_continuation(
                decoder,
                passage.context,
                passage.word,
                max_length=max_length,
                who=f"{name} on passage {number}",
            )
            for name, decoder in zip(("the model", "the reference model"), decoders, strict=False)
        )


def lambada_metrics(scores: Sequence[tuple[Score, ...]]) -> LambadaMetrics:
    """Metrics from scores of the model, and of the reference where there is one.

    Args:
        scores: of at least one passage: of the model alone, or of the model and the reference.
    """
    model = [score[0] for score in scores]
    accuracy, perplexity = _accuracy(model), _perplexity(model)
    shortened = sum(score.shortened > 0 for score in model)
    if len(scores[0]) == 1:
        return LambadaMetrics(len(model), shortened, accuracy, perplexity)
    reference = [score[1] for score in scores]
    changes = [int(a.greedy) - int(b.greedy) for a, b in zip(model, reference, strict=True)]
    return LambadaMetrics(
        len(model),
        shortened,
        accuracy,
        perplexity,
        _accuracy(reference),
        _perplexity(reference),
        ratio_of_sums(changes, [1] * len(changes)),
    )


def _accuracy(scores: Sequence[Score]) -> Estimate:
    return proportion(sum(score.greedy for score in scores), len(scores))


def _perplexity(scores: Sequence[Score]) -> Estimate:
    return exponential(ratio_of_sums([-s.log_likelihood for s in scores], [1] * len(scores)))
