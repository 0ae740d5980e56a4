"""How far one language model is from another: perplexity, KL divergence and top-1 agreement.

For models that are no language models, `compare_outputs` gives plain differences of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.output_difference import OutputDifference, compare_outputs, ratio
from fptq_onnx.evaluation.standard_errors import Estimate, exponential, ratio_of_sums
from fptq_onnx.evaluation.window_metrics import (
    WindowMetrics,
    WindowNll,
    gives_last_only,
    last_logits,
    window_logits,
    window_metrics,
    window_nll,
)
from fptq_onnx.runtime.decoder import Decoder

__all__ = [
    "Comparison",
    "OutputDifference",
    "WindowFigures",
    "compare",
    "compare_last_positions",
    "compare_outputs",
    "compare_windows",
    "figures_against_reference",
    "figures_alone",
    "measure_windows",
    "perplexity",
    "perplexity_of",
]


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
        positions: positions compared.
        predictions: positions that perplexity is taken over.
        last_only: whether the last position of each window alone was compared.
        kl_median: of all positions, nats; a few bad ones do not move it.
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
    last_only: bool = False
    kl_median: float = 0.0

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers by name, for JSON."""
        return asdict(self)


def compare(
    reference: Decoder, candidate: Decoder, windows: Iterable[NDArray[np.int64]]
) -> Comparison:
    """Feed both models the same windows and compare their logits, one window in memory at a time.

    Probabilities are taken in float64 from float32 logits; a model against itself has a KL of
    exactly 0. A window is fed whole, with an empty cache. Where the models give logits of the last
    token only, they are fed all but the last one, and compared on what comes next.

    Args:
        reference: the original.
        candidate: the model to judge.
        windows: int64 [n] each, n >= 1; a window of 2 or more is needed for a perplexity.

    Raises:
        FptqError: no window with a token to predict, a NaN or +infinity in either model's logits,
            or logits of different or unexpected shapes.
    """
    windows = list(windows)
    last_only = gives_last_only(reference, windows)
    sums = compare_last_positions if last_only else compare_windows
    parts = list(sums(reference, candidate, windows))
    positions = sum(part.positions for part in parts)
    predictions = [part.predictions for part in parts]
    return Comparison(
        perplexity_reference=perplexity_of([p.nll_reference for p in parts], predictions).value,
        perplexity=perplexity_of([part.nll for part in parts], predictions).value,
        kl=sum(part.kl for part in parts) / positions,
        kl_max=max(part.kl_max for part in parts),
        top1=sum(part.agreed for part in parts) / positions,
        max_abs_diff=max(part.max_abs_diff for part in parts),
        max_rel_diff=ratio(
            max(part.max_abs_diff for part in parts), max(part.max_abs for part in parts)
        ),
        positions=positions,
        predictions=sum(predictions),
        last_only=last_only,
        kl_median=float(np.median(np.concatenate([part.kl_of_positions for part in parts]))),
    )


def compare_windows(
    reference: Decoder, candidate: Decoder, windows: Iterable[NDArray[np.int64]]
) -> Iterator[WindowMetrics]:
    """What `compare` sums, of each window.

    Args:
        reference: the original.
        candidate: the model to judge.
        windows: int64 [n] each, n >= 1.

    Raises:
        FptqError: as `compare`, but for windows without a token to predict.
    """
    for number, window in enumerate(windows, start=1):
        expected = window_logits(reference, window, f"the reference model on window {number}")
        actual = window_logits(candidate, window, f"the model on window {number}")
        _check_widths(expected, actual)
        yield window_metrics(expected, actual, window)


def compare_last_positions(
    reference: Decoder, candidate: Decoder, windows: Iterable[NDArray[np.int64]]
) -> Iterator[WindowMetrics]:
    """What `compare` sums of models that give logits of the last token only: one position each.

    Args:
        reference: the original.
        candidate: the model to judge.
        windows: int64 [n] each; those of one token are passed over.

    Raises:
        FptqError: as `compare_windows`.
    """
    for number, window in enumerate(windows, start=1):
        if len(window) < 2:
            continue
        expected = last_logits(reference, window[:-1], f"the reference model on window {number}")
        actual = last_logits(candidate, window[:-1], f"the model on window {number}")
        _check_widths(expected, actual)
        yield window_metrics(expected, actual, window[-2:])


def _check_widths(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
    if expected.shape != actual.shape:
        raise FptqError(
            f"the two models' vocabularies differ: logits {expected.shape[1]} and "
            f"{actual.shape[1]} wide; compare a model with one converted from it"
        )


def perplexity(decoder: Decoder, windows: Iterable[NDArray[np.int64]]) -> float:
    """Perplexity alone, as `compare` takes it.

    Raises:
        FptqError: as `compare`.
    """
    parts = list(measure_windows(decoder, windows))
    return perplexity_of([part.nll for part in parts], [part.predictions for part in parts]).value


def measure_windows(decoder: Decoder, windows: Iterable[NDArray[np.int64]]) -> Iterator[WindowNll]:
    """What `perplexity` sums, of each window.

    Raises:
        FptqError: as `compare_windows`.
    """
    for number, window in enumerate(windows, start=1):
        yield window_nll(window_logits(decoder, window, f"the model on window {number}"), window)


def perplexity_of(nll: Sequence[float], predictions: Sequence[int]) -> Estimate:
    """Perplexity with its standard error from windows' sums.

    Args:
        nll: negative log-likelihood of each window, nats.
        predictions: tokens each is summed over.

    Raises:
        FptqError: no token was predicted.
    """
    if sum(predictions) < 1:
        raise FptqError("there is nothing to evaluate on; give windows of two tokens or more")
    return exponential(ratio_of_sums(nll, predictions))


@dataclass(frozen=True)
class WindowFigures:
    """How well a text was predicted. Standard errors are over windows.

    Attributes:
        windows: windows fed.
        predictions: tokens that perplexity is taken over.
        perplexity: exp of the mean negative log-likelihood (nats) of a token.
        perplexity_reference: of the reference. None without one, as all that follow.
        perplexity_ratio: perplexity over the reference's; its error is of the windows' differences,
            and so is smaller than that of either.
        kl: mean over positions of KL(reference || model), nats.
        kl_max: largest of any position, nats.
        top1: share of positions where both have the same most likely token.
        positions: positions that kl and top1 are taken over.
    """

    windows: int
    predictions: int
    perplexity: Estimate
    perplexity_reference: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    kl: Estimate | None = None
    kl_max: float | None = None
    top1: Estimate | None = None
    positions: int | None = None


def figures_alone(parts: Sequence[WindowNll]) -> WindowFigures:
    """Figures of a model without a reference.

    Raises:
        FptqError: no token was predicted.
    """
    predictions = [part.predictions for part in parts]
    return WindowFigures(
        windows=len(parts),
        predictions=sum(predictions),
        perplexity=perplexity_of([part.nll for part in parts], predictions),
    )


def figures_against_reference(parts: Sequence[WindowMetrics]) -> WindowFigures:
    """Figures of a model with a reference.

    Raises:
        FptqError: no token was predicted.
    """
    predictions = [part.predictions for part in parts]
    positions = [part.positions for part in parts]
    return WindowFigures(
        windows=len(parts),
        predictions=sum(predictions),
        perplexity=perplexity_of([part.nll for part in parts], predictions),
        perplexity_reference=perplexity_of([part.nll_reference for part in parts], predictions),
        perplexity_ratio=exponential(
            ratio_of_sums([part.nll - part.nll_reference for part in parts], predictions)
        ),
        kl=ratio_of_sums([part.kl for part in parts], positions),
        kl_max=max(part.kl_max for part in parts),
        top1=ratio_of_sums([part.agreed for part in parts], positions),
        positions=sum(positions),
    )
