"""What one window of tokens adds to perplexity, KL divergence and top-1 agreement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.decoder import Decoder
from fptq_onnx.errors import FptqError
from fptq_onnx.output_difference import max_abs_diff, max_finite

# float64 elements of log-probabilities in memory at a time (a vocabulary may be 256 K wide).
_BLOCK = 1 << 22


@dataclass(frozen=True)
class WindowNll:
    """Likelihood of one window.

    Attributes:
        nll: negative log-likelihood of the tokens but the first, summed, nats.
        predictions: tokens it is summed over.
    """

    nll: float
    predictions: int


@dataclass(frozen=True)
class WindowSums:
    """Two models on one window.

    Attributes:
        nll_reference: negative log-likelihood of the tokens but the first, summed, nats.
        nll: the same of the candidate.
        kl: KL(reference || candidate) summed over all positions, nats.
        kl_max: largest of any position.
        agreed: positions where both have the same most likely token.
        max_abs_diff: largest difference of two logits.
        max_abs: largest absolute finite logit of the reference.
        positions: positions with logits.
        predictions: tokens that the likelihoods are summed over.
        kl_of_positions: KL of each position, float64 [positions], nats.
    """

    nll_reference: float
    nll: float
    kl: float
    kl_max: float
    agreed: int
    max_abs_diff: float
    max_abs: float
    positions: int
    predictions: int
    kl_of_positions: NDArray[np.float64]


def window_nll(logits: NDArray[np.float32], window: NDArray[np.int64]) -> WindowNll:
    """Likelihood of a window.

    Args:
        logits: [n, vocabulary] of the window's n positions.
        window: [n].
    """
    nll = 0.0
    for start, block in _blocks(logits[:-1]):
        nll -= float(_picked(log_softmax(block), window[1:], start).sum())
    return WindowNll(nll, len(window) - 1)


def window_sums(
    expected: NDArray[np.float32], actual: NDArray[np.float32], window: NDArray[np.int64]
) -> WindowSums:
    """Compare two models' logits on a window.

    Args:
        expected: the reference's, [positions, vocabulary].
        actual: the candidate's, the same shape.
        window: the tokens of these positions; one more where the token after them is known.
    """
    nll_reference = nll = kl_sum = kl_max = difference = largest = 0.0
    agreed = 0
    every = [np.zeros(0)]
    for start, reference in _blocks(expected):
        candidate = actual[start : start + len(reference)]
        log_p, log_q = log_softmax(reference), log_softmax(candidate)
        kl = _kl(log_p, log_q)
        kl_sum += float(kl.sum())
        every.append(kl)
        kl_max = max(kl_max, float(kl.max()))
        nll_reference -= float(_picked(log_p, window[1:], start).sum())
        nll -= float(_picked(log_q, window[1:], start).sum())
        agreed += int((reference.argmax(1) == candidate.argmax(1)).sum())
        difference = max(difference, max_abs_diff(reference, candidate))
        largest = max(largest, max_finite(reference))
    return WindowSums(
        nll_reference=nll_reference,
        nll=nll,
        kl=kl_sum,
        kl_max=kl_max,
        agreed=agreed,
        max_abs_diff=difference,
        max_abs=largest,
        positions=len(expected),
        predictions=len(window) - 1,
        kl_of_positions=np.concatenate(every),
    )


def window_logits(decoder: Decoder, window: NDArray[np.int64], who: str) -> NDArray[np.float32]:
    """Logits of one window, fed whole with an empty cache.

    Where the graph demands more tokens, the last one is repeated: a causal model's earlier logits
    do not depend on what follows. -infinity (a masked token) is let through.

    Args:
        decoder: the model.
        window: int64 [n], n >= 1.
        who: the model, for messages.

    Returns:
        float32 [n, vocabulary].

    Raises:
        FptqError: logits of an unexpected shape, NaN or +infinity among them, or a token the model
            has no logit for.
    """
    length = max(len(window), decoder.io.fixed_sequence or 0)
    fed = np.pad(window, (0, length - len(window)), mode="edge")
    logits = decoder.forward(fed[None]).logits
    assert logits is not None
    if logits.ndim != 3 or logits.shape[:2] != (1, length):
        raise FptqError(
            f"{who} gave logits {list(logits.shape)} for {length} tokens; export the model "
            "with logits for every position"
        )
    return _checked(logits[0, : len(window)], window, who)


def gives_last_only(decoder: Decoder, windows: Iterable[NDArray[np.int64]]) -> bool:
    """Whether a model gives logits of the last token alone (onnxruntime-genai's prune_lm_head).

    Args:
        decoder: the model.
        windows: int64 [n] each; the first of several tokens is fed.

    Raises:
        FptqError: the model cannot be run.
    """
    window = next((window for window in windows if len(window) > 1), None)
    if window is None or decoder.io.fixed_sequence is not None:
        return False
    logits = decoder.forward(window[None]).logits
    return logits is not None and logits.ndim == 3 and logits.shape[1] == 1


def last_logits(decoder: Decoder, window: NDArray[np.int64], who: str) -> NDArray[np.float32]:
    """Logits of the last token of a window, of a model that gives no others.

    Args:
        decoder: the model.
        window: int64 [n], n >= 1.
        who: the model, for messages.

    Returns:
        float32 [1, vocabulary].

    Raises:
        FptqError: as `window_logits`.
    """
    logits = decoder.forward(window[None]).logits
    assert logits is not None
    if logits.ndim != 3 or logits.shape[:2] != (1, 1):
        raise FptqError(f"{who} gave logits {list(logits.shape)} where [1, 1, ...] was expected")
    return _checked(logits[0], window, who)


def _checked(
    first: NDArray[np.float32], window: NDArray[np.int64], who: str
) -> NDArray[np.float32]:
    bad = np.isnan(first) | np.isposinf(first)
    if bad.any():
        position = int(np.argwhere(bad)[0][0])
        raise FptqError(
            f"{who} gave {int(bad.sum())} logits that are NaN or infinite, first at position "
            f"{position}; its weights or activations are out of range"
        )
    if int(window.max()) >= first.shape[1]:
        raise FptqError(
            f"{who} has logits for {first.shape[1]} tokens, but the text has the token "
            f"{int(window.max())}; use the model's own tokenizer"
        )
    return first


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of each row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _blocks(logits: NDArray[np.float32]) -> Iterable[tuple[int, NDArray[np.float32]]]:
    rows = max(1, _BLOCK // max(1, logits.shape[1]))
    return ((start, logits[start : start + rows]) for start in range(0, len(logits), rows))


def _kl(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where both mask a token
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    # Rounding can leave a sum of -1e-17; a divergence is not negative.
    return np.maximum(np.asarray(terms.sum(axis=1), np.float64), 0.0)


def _picked(
    log_p: NDArray[np.float64], targets: NDArray[np.int64], start: int
) -> NDArray[np.float64]:
    """Log-probabilities of the tokens that came next, for rows that have a next token."""
    ids = targets[start : start + len(log_p)]
    return np.asarray(log_p[np.arange(len(ids)), ids], np.float64)
