"""Perplexity, KL divergence and top-1 agreement over windows, each with a standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fptq_onnx.evaluation.perplexity import perplexity_of
from fptq_onnx.evaluation.standard_errors import Estimate, exponential, ratio_of_sums
from fptq_onnx.evaluation.window_metrics import WindowMetrics, WindowNll


@dataclass(frozen=True)
class PerplexityMetrics:
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


def metrics_alone(parts: Sequence[WindowNll]) -> PerplexityMetrics:
    """Metrics of a model without a reference.

    Raises:
        FptqError: no token was predicted.
    """
    predictions = [part.predictions for part in parts]
    return PerplexityMetrics(
        windows=len(parts),
        predictions=sum(predictions),
        perplexity=perplexity_of([part.nll for part in parts], predictions),
    )


def metrics_against_reference(parts: Sequence[WindowMetrics]) -> PerplexityMetrics:
    """Metrics of a model with a reference.

    Raises:
        FptqError: no token was predicted.
    """
    predictions = [part.predictions for part in parts]
    positions = [part.positions for part in parts]
    return PerplexityMetrics(
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
