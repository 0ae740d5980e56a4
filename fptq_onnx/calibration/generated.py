"""Calibration without data: the model writes the samples itself.

Random tokens make activations that real text never makes, and weights fitted to them are worse for
it. What the model samples from its own distribution is as good as text (docs/accuracy.md has the
metrics); LLM-QAT (arXiv 2305.17888) trains on such data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.decoder import Decoder

# Sequences written side by side: enough to share each read of the weights, few enough for a cache.
_BATCH = 64
# A window with more than this share of tokens that are among the few before them is a loop. Text
# of single bytes has about a third.
_LOOP, _BEFORE = 0.75, 4

Tracker = Callable[[Iterable[int], int], Iterator[int]]


def write_windows(
    decoder: Decoder,
    starts: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
    *,
    prefix: Sequence[int] = (),
    eos: Collection[int] = (),
    known: int | None = None,
    track: Tracker = lambda items, _: iter(items),
) -> list[NDArray[np.int64]]:
    """Let a model go on from the first tokens of each window, at temperature 1.

    Args:
        decoder: has a KV cache.
        starts: int64 [n] each, all of one length. They begin with `prefix`; the token after it
            stays too, so that no two are alike, and what follows is replaced. Without a prefix the
            first two tokens stay.
        rng: draws the tokens.
        prefix: ids that a text begins with; they follow an end of text that the model wrote.
        eos: ids that end a text.
        known: ids of the vocabulary; logits beyond it (padding) are never drawn.
        track: wraps the steps to show progress.

    Returns:
        Windows of the same number and length.

    Raises:
        FptqError: the model gives NaN.
    """
    length = len(starts[0])
    size = decoder.io.fixed_batch or min(_BATCH, len(starts))
    batches = [list(starts[begin : begin + size]) for begin in range(0, len(starts), size)]
    given = max(len(prefix), 1) + 1
    steps = max(length - given, 0)
    progress = track(range(len(batches) * steps), len(batches) * steps)
    windows: list[NDArray[np.int64]] = []
    for batch in batches:
        # A graph with a fixed batch is fed whole ones.
        padded = [batch[index % len(batch)] for index in range(size)] if steps else batch
        ids = np.stack(padded)[:, :given]
        written, cache = [ids], None
        # Tokens of the prefix that a row still has to get, counted down.
        waiting = np.zeros(len(ids), np.int64)
        for _ in range(steps):
            next(progress)
            step = decoder.forward(written[-1], cache)
            assert step.logits is not None
            cache = step.cache
            tokens = _draw(step.logits[:, -1, :known], rng)
            if prefix:
                put = waiting > 0
                tokens = np.where(put, np.asarray(prefix)[-waiting], tokens)
                # An end that is part of the prefix ends nothing (BOS and EOS are often one token).
                ended = np.isin(tokens, list(eos)) & ~put
                waiting = np.where(ended, len(prefix), waiting - put)
            written.append(tokens[:, None])
        windows += list(np.concatenate(written, axis=1)[: len(batch)])
    return windows


def without_loops(
    written: Sequence[NDArray[np.int64]], drawn: Sequence[NDArray[np.int64]]
) -> tuple[list[NDArray[np.int64]], int]:
    """Take the random window where the model wrote the same few tokens over and over.

    A model that does not know better repeats its last token (random weights with the embedding as
    head do): weights fitted to such samples suit nothing else.

    Args:
        written: int64 [n] each, by the model.
        drawn: as many, random.

    Returns:
        The windows to use, and how many of them are random.
    """
    loops = [_is_loop(window) for window in written]
    chosen = zip(loops, written, drawn, strict=True)
    return [random if loop else own for loop, own, random in chosen], sum(loops)


def _is_loop(window: NDArray[np.int64]) -> bool:
    if len(window) <= _BEFORE:
        return False
    later = window[_BEFORE:]
    before = np.stack(
        [window[_BEFORE - back : len(window) - back] for back in range(1, _BEFORE + 1)]
    )
    return bool((before == later).any(axis=0).mean() > _LOOP)


def _draw(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """One token per row [batch], by the Gumbel trick."""
    if np.isnan(logits).any():
        raise FptqError("the model gave NaN for the next token: its weights are out of range")
    return np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(axis=1), np.int64)
