"""How likely a model finds a text's continuation, and whether it would write just that itself.

The rules are lm-evaluation-harness's for causal models, so that its tasks give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fptq_onnx.decoder import Decoder
from fptq_onnx.errors import FptqError
from fptq_onnx.text_tokenizer import TextTokenizer
from fptq_onnx.window_sums import log_softmax, window_logits


@dataclass(frozen=True)
class Score:
    """A continuation's score.

    Attributes:
        log_likelihood: of all its tokens given the context, nats.
        greedy: whether each of its tokens is the most likely one after those before it.
        shortened: tokens at the start of the context that the model's context had no room for.
    """

    log_likelihood: float
    greedy: bool
    shortened: int


def encode_pair(
    tokenizer: TextTokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it.

    The continuation's tokens are those of both texts together, after as many as the context alone
    has. White space at the context's end belongs to the continuation.

    Args:
        tokenizer: the model's.
        context: may be empty.
        continuation: the text to score.

    Returns:
        Ids of the context, with what the tokenizer puts before a text, and of the continuation;
        either may be empty.

    Raises:
        FptqError: a token that the model does not know.
    """
    whole = tokenizer.ids(context + continuation)
    alone = tokenizer.ids(context.rstrip())
    return tokenizer.known([*tokenizer.prefix, *alone]), whole[len(alone) :]


def score_continuation(
    decoder: Decoder,
    context: Sequence[int],
    continuation: Sequence[int],
    *,
    max_length: int | None = None,
    who: str = "the model",
) -> Score:
    """Score one continuation; see `score_continuations`."""
    return next(score_continuations(decoder, context, [continuation], max_length, who))


def score_continuations(
    decoder: Decoder,
    context: Sequence[int],
    continuations: Iterable[Sequence[int]],
    max_length: int | None = None,
    who: str = "the model",
) -> Iterator[Score]:
    """Score continuations of one context by feeding each whole after it.

    Neighbours that differ in their last token alone, such as the letters of a multiple choice,
    are fed once.

    Args:
        decoder: the model.
        context: ids, at least one.
        continuations: ids, at least one in each.
        max_length: tokens the model can be fed; the start of a longer context is left out.
        who: the model, for messages.

    Raises:
        FptqError: an empty context or continuation, a continuation longer than max_length, or
            logits that cannot be used.
    """
    before: list[int] = []
    for continuation in continuations:
        _check_lengths(context, continuation, max_length)
        fed = [*context, *continuation][:-1]
        shortened = max(0, len(fed) - max_length) if max_length is not None else 0
        if fed != before:
            logits = window_logits(decoder, np.asarray(fed[shortened:], np.int64), who)
            before = fed
        rows, targets = logits[-len(continuation) :], np.asarray(continuation, np.int64)
        if int(targets.max()) >= rows.shape[1]:
            raise FptqError(
                f"{who} has logits for {rows.shape[1]} tokens, but the text has the token "
                f"{int(targets.max())}; use the model's own tokenizer"
            )
        picked = log_softmax(rows)[np.arange(len(targets)), targets]
        yield Score(float(picked.sum()), bool((rows.argmax(1) == targets).all()), shortened)


def _check_lengths(
    context: Sequence[int], continuation: Sequence[int], max_length: int | None
) -> None:
    if not context or not continuation:
        raise FptqError("a continuation is scored after a context, and one of them has no tokens")
    if max_length is not None and len(continuation) > max_length:
        raise FptqError(
            f"a continuation of {len(continuation)} tokens does not fit into the model's context "
            f"of {max_length}; shorten it"
        )
