import math

import numpy as np
import pytest
from support.bigrams import bigram

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.perplexity import (
    compare,
    compare_windows,
    figures_against_reference,
    figures_alone,
    measure_windows,
)

EVEN = [[0.0, 0.0], [0.0, 0.0]]
# softmax([ln 3, 0]) = [3/4, 1/4]
LEANING = [[math.log(3), 0.0], [0.0, 1.0]]
WINDOWS = [np.array([0, 0, 1, 0, 0]), np.array([0, 1]), np.array([1, 0, 1])]


def test_the_means_are_those_of_compare() -> None:
    reference, candidate = bigram(EVEN), bigram(LEANING)
    want = compare(reference, candidate, WINDOWS)
    got = figures_against_reference(list(compare_windows(reference, candidate, WINDOWS)))
    assert got.kl is not None and got.top1 is not None and got.perplexity_reference is not None
    assert got.perplexity.value == want.perplexity
    assert got.perplexity_reference.value == want.perplexity_reference
    assert (got.kl.value, got.kl_max, got.top1.value) == (want.kl, want.kl_max, want.top1)
    assert (got.windows, got.positions, got.predictions) == (3, 10, want.predictions)


def test_errors_by_hand() -> None:
    parts = list(compare_windows(bigram(EVEN), bigram(LEANING), WINDOWS))
    got = figures_against_reference(parts)
    # Argmax of EVEN is 0 everywhere, of LEANING the token itself: they differ where a 1 stands.
    residuals = np.array([4, 1, 1]) - 0.6 * np.array([5, 2, 3])
    error = math.sqrt(3 / 2 * np.square(residuals).sum()) / 10
    assert got.top1 is not None and got.top1.value == 0.6
    assert got.top1.standard_error == pytest.approx(error, rel=1e-12)
    # The reference gives each token 1/2 whatever the window, so all the ratio's spread is the
    # model's: relative errors of the ratio and of the model's perplexity are the same.
    ratio, alone = (
        got.perplexity_ratio,
        figures_alone(list(measure_windows(bigram(LEANING), WINDOWS))).perplexity,
    )
    assert alone == got.perplexity
    assert ratio is not None and ratio.value == pytest.approx(alone.value / 2, rel=1e-12)
    assert ratio.standard_error == pytest.approx(alone.standard_error / 2, rel=1e-9)


def test_nothing_predicted() -> None:
    windows = [np.array([0])]
    with pytest.raises(FptqError, match="nothing to evaluate on"):
        figures_alone(list(measure_windows(bigram(EVEN), windows)))
    with pytest.raises(FptqError, match="nothing to evaluate on"):
        figures_against_reference(list(compare_windows(bigram(EVEN), bigram(EVEN), windows)))
