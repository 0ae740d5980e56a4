"""Differences of two models' outputs on raw inputs, for models of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.session import first_line


@dataclass(frozen=True)
class OutputDifference:
    """One output of a candidate against the reference's, over all samples.

    Attributes:
        name: of the output.
        max_abs_diff: largest difference of two elements.
        max_rel_diff: that, divided by the largest absolute element of the reference.
        sqnr_db: 10 log10(sum reference^2 / sum difference^2), infinite where there is none.
        elements: elements compared.
        token_error_mean, token_error_median, token_error_worst: of its tokens, which are the rows
            of its last axis: |difference| / |reference|, in the 2-norm. A sum over all hides what
            becomes of the others where one token is far larger; these do not. Rows that are all
            zero in the reference do not count; 0 where there are no others.
    """

    name: str
    max_abs_diff: float
    max_rel_diff: float
    sqnr_db: float
    elements: int
    token_error_mean: float = 0.0
    token_error_median: float = 0.0
    token_error_worst: float = 0.0


def compare_outputs(
    reference: ort.InferenceSession,
    candidate: ort.InferenceSession,
    samples: Iterable[dict[str, NDArray[Any]]],
    outputs: Sequence[str] | None = None,
) -> list[OutputDifference]:
    """Compare two models of any kind on raw inputs, one sample in memory at a time.

    Args:
        reference: session of the original.
        candidate: session of the model to judge.
        samples: inputs by name.
        outputs: names to compare; by default all of the reference's.

    Raises:
        FptqError: no sample, a NaN in an output of either, or outputs of different shapes.
    """
    names = list(outputs or [output.name for output in reference.get_outputs()])
    sums = {name: _OutputSums() for name in names}
    empty = True
    for number, sample in enumerate(samples, start=1):
        empty = False
        expected = _run(reference, names, sample, f"the reference model on sample {number}")
        actual = _run(candidate, names, sample, f"the model on sample {number}")
        for name, a, b in zip(names, expected, actual, strict=True):
            if a.shape != b.shape:
                raise FptqError(
                    f"output {name} is {list(b.shape)} in the model but {list(a.shape)} in the "
                    "reference; compare a model with one converted from it"
                )
            sums[name].add(a, b)
    if empty:
        raise FptqError("there is nothing to evaluate on; give at least one sample")
    return [total.result(name) for name, total in sums.items()]


def _run(
    session: ort.InferenceSession, names: list[str], sample: dict[str, NDArray[Any]], who: str
) -> list[NDArray[Any]]:
    try:
        results = [np.asarray(result) for result in session.run(names, sample)]
    except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
        raise FptqError(f"onnxruntime could not run {who}: {first_line(error)}") from error
    for name, result in zip(names, results, strict=True):
        if result.dtype.kind == "f" and np.isnan(result).any():
            raise FptqError(f"{who} gave NaN in output {name}; compare on other inputs")
    return results


class _OutputSums:
    def __init__(self) -> None:
        self.max_abs_diff = self.max_abs = self.signal = self.noise = 0.0
        self.elements = 0
        self.tokens: list[NDArray[np.float64]] = []  # their errors

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        self.max_abs_diff = max(self.max_abs_diff, max_abs_diff(a, b))
        self.max_abs = max(self.max_abs, max_finite(a))
        finite = np.isfinite(a) & np.isfinite(b)
        x = np.asarray(a, np.float64)[finite]
        self.signal += float(np.square(x).sum())
        self.noise += float(np.square(x - np.asarray(b, np.float64)[finite]).sum())
        self.elements += a.size
        self.tokens.append(token_errors(a, b))

    def result(self, name: str) -> OutputDifference:
        sqnr = math.inf
        if self.noise > 0:
            sqnr = 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        return OutputDifference(
            name,
            self.max_abs_diff,
            ratio(self.max_abs_diff, self.max_abs),
            sqnr,
            self.elements,
            *_mean_median_worst(np.concatenate(self.tokens)),
        )


def token_errors(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """|a - b| / |a| in the 2-norm of each row of the last axis whose finite elements are not all 0.

    Args:
        a: the reference; a scalar is one row.
        b: the candidate, of the same shape.
    """
    width = a.shape[-1] if a.ndim else 1
    if not a.size:
        return np.zeros(0)
    x, y = (np.asarray(array, np.float64).reshape(-1, width) for array in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore"):
        missed = np.sqrt(np.square(np.where(finite, x - y, 0.0)).sum(axis=1))
    size = np.sqrt(np.square(np.where(finite, x, 0.0)).sum(axis=1))
    found: NDArray[np.float64] = missed[size > 0] / size[size > 0]
    return found


def _mean_median_worst(errors: NDArray[np.float64]) -> tuple[float, float, float]:
    if not len(errors):
        return 0.0, 0.0, 0.0
    return float(errors.mean()), float(np.median(errors)), float(errors.max())


def max_abs_diff(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest |a - b|; equal infinities do not differ."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return float(np.max(np.where(a == b, 0.0, difference), initial=0.0))


def max_finite(a: NDArray[Any]) -> float:
    """Largest finite |a|, 0 if there is none."""
    magnitude = np.abs(np.asarray(a, np.float64))
    return float(np.max(magnitude, initial=0.0, where=np.isfinite(magnitude)))


def ratio(difference: float, scale: float) -> float:
    """A difference relative to a scale; 0 for none at all, infinite where the scale is 0."""
    if difference == 0:
        return 0.0
    return difference / scale if scale else math.inf
