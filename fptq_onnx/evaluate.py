"""How far one language model is from another: perplexity, KL divergence and top-1 agreement.

For models that are no language models, `compare_outputs` gives plain differences of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.decoder import Decoder
from fptq_onnx.errors import FptqError
from fptq_onnx.output_difference import (
    OutputDifference,
    compare_outputs,
    max_abs_diff,
    max_finite,
    ratio,
)

__all__ = ["Comparison", "OutputDifference", "compare", "compare_outputs", "perplexity"]

# float64 elements of log-probabilities in memory at a time (a vocabulary may be 256 K wide).
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """A candidate language model against its reference.

    Attributes:
        perplexity_reference: exp of the mean negative log-likelihood (nats) of each window's tokens
            but the first, given those before it in the window.
        perplexity: the same of the candidate.
        kl: mean over all positions of KL(reference || candidate), nats.
        kl_max: largest of any position.
        top1: share of positions where both have the same most likely token, 0..1.
        max_abs_diff: largest difference of two logits.
        max_rel_diff: that, divided by the largest absolute logit of the reference.
        positions: positions compared (tokens fed).
        predictions: positions that perplexity is taken over.
    """

    perplexity_reference: float
    perplexity: float
    kl: float
    kl_max: float
    top1: float
    max_abs_diff: float
    max_rel_diff: float
    positions: int
    predictions: int

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers by name, for JSON."""
        return asdict(self)


def compare(
    reference: Decoder, candidate: Decoder, windows: Iterable[NDArray[np.int64]]
) -> Comparison:
    """Feed both models the same windows and compare their logits, one window in memory at a time.

    Probabilities are taken in float64 from float32 logits; a model against itself has a KL of
    exactly 0. A window is fed whole, with an empty cache.

    Args:
        reference: the original.
        candidate: the model to judge.
        windows: int64 [n] each, n >= 1; a window of 2 or more is needed for a perplexity.

    Raises:
        FptqError: no window with a token to predict, a NaN or +infinity in either model's logits,
            or logits of different or unexpected shapes.
    """
    totals = _Totals()
    for number, window in enumerate(windows, start=1):
        expected = _logits(reference, window, f"the reference model on window {number}")
        actual = _logits(candidate, window, f"the model on window {number}")
        if expected.shape != actual.shape:
            raise FptqError(
                f"the two models' vocabularies differ: logits {expected.shape[1]} and "
                f"{actual.shape[1]} wide; compare a model with one converted from it"
            )
        totals.add(expected, actual, window)
    return totals.result()


def perplexity(decoder: Decoder, windows: Iterable[NDArray[np.int64]]) -> float:
    """Perplexity alone, as `compare` takes it.

    Raises:
        FptqError: as `compare`.
    """
    nll, predictions = 0.0, 0
    for number, window in enumerate(windows, start=1):
        logits = _logits(decoder, window, f"the model on window {number}")
        for start, block in _blocks(logits[:-1]):
            log_p = _log_softmax(block)
            nll -= _picked(log_p, window[1:], start).sum()
        predictions += len(window) - 1
    return _perplexity(nll, predictions)


class _Totals:
    """Sums over windows."""

    def __init__(self) -> None:
        self.nll_reference = self.nll = self.kl = 0.0
        self.kl_max = self.max_abs_diff = self.max_abs = 0.0
        self.agreed = self.positions = self.predictions = 0

    def add(
        self,
        expected: NDArray[np.float32],
        actual: NDArray[np.float32],
        window: NDArray[np.int64],
    ) -> None:
        for start, reference in _blocks(expected):
            candidate = actual[start : start + len(reference)]
            log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
            kl = _kl(log_p, log_q)
            self.kl += float(kl.sum())
            self.kl_max = max(self.kl_max, float(kl.max()))
            self.nll_reference -= float(_picked(log_p, window[1:], start).sum())
            self.nll -= float(_picked(log_q, window[1:], start).sum())
            self.agreed += int((reference.argmax(1) == candidate.argmax(1)).sum())
            self.max_abs_diff = max(self.max_abs_diff, max_abs_diff(reference, candidate))
            self.max_abs = max(self.max_abs, max_finite(reference))
        self.positions += len(expected)
        self.predictions += len(expected) - 1

    def result(self) -> Comparison:
        return Comparison(
            perplexity_reference=_perplexity(self.nll_reference, self.predictions),
            perplexity=_perplexity(self.nll, self.predictions),
            kl=self.kl / self.positions,
            kl_max=self.kl_max,
            top1=self.agreed / self.positions,
            max_abs_diff=self.max_abs_diff,
            max_rel_diff=ratio(self.max_abs_diff, self.max_abs),
            positions=self.positions,
            predictions=self.predictions,
        )


def _logits(decoder: Decoder, window: NDArray[np.int64], who: str) -> NDArray[np.float32]:
    """Logits [n, vocabulary] of one window; -infinity (a masked token) is let through."""
    logits = decoder.forward(window[None]).logits
    assert logits is not None
    if logits.ndim != 3 or logits.shape[:2] != (1, len(window)):
        raise FptqError(
            f"{who} gave logits {list(logits.shape)} for {len(window)} tokens; export the model "
            "with logits for every position"
        )
    bad = np.isnan(logits) | np.isposinf(logits)
    if bad.any():
        position = int(np.argwhere(bad)[0][1])
        raise FptqError(
            f"{who} gave {int(bad.sum())} logits that are NaN or infinite, first at position "
            f"{position}; its weights or activations are out of range"
        )
    first: NDArray[np.float32] = logits[0]
    return first


def _blocks(logits: NDArray[np.float32]) -> Iterable[tuple[int, NDArray[np.float32]]]:
    rows = max(1, _BLOCK // max(1, logits.shape[1]))
    return ((start, logits[start : start + rows]) for start in range(0, len(logits), rows))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


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


def _perplexity(nll: float, predictions: int) -> float:
    if predictions < 1:
        raise FptqError("there is nothing to evaluate on; give windows of two tokens or more")
    mean = nll / predictions
    return math.exp(mean) if mean < 700 else math.inf  # exp overflows a double at 709
