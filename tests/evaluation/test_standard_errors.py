import math

import numpy as np
import pytest

from fptq_onnx.evaluation.standard_errors import Estimate, exponential, proportion, ratio_of_sums


def test_equal_counts_give_the_textbook_error(rng: np.random.Generator) -> None:
    sums = rng.normal(30.0, 4.0, 50)
    result = ratio_of_sums(list(sums), [10] * 50)
    means = sums / 10
    assert result.value == pytest.approx(means.mean(), rel=1e-12)
    assert result.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_unequal_counts_agree_with_drawing_again(rng: np.random.Generator) -> None:
    """The error is the spread of the ratio over many samples from one population."""
    results = []
    for _ in range(2000):
        counts = rng.integers(20, 100, 60)
        sums = counts * rng.normal(2.5, 0.5, 60)
        results.append(ratio_of_sums(list(sums), list(counts)))
    spread = np.std([result.value for result in results])
    # A spread of 2000 draws is known to 1/sqrt(2 * 2000) = 1.6 %; three of those, and the bias of
    # a linearization, which is of the order 1/60.
    typical = np.mean([result.standard_error for result in results])
    assert typical == pytest.approx(spread, rel=0.065)


def test_too_few_parts_have_no_error() -> None:
    assert ratio_of_sums([3.0], [2]) == Estimate(1.5, None)
    assert ratio_of_sums([math.inf, 1.0], [1, 1]) == Estimate(math.inf, None)


def test_exponential_is_the_delta_method() -> None:
    assert exponential(Estimate(2.0, 0.1)) == Estimate(math.exp(2), math.exp(2) * 0.1)
    assert exponential(Estimate(2.0, None)) == Estimate(math.exp(2), None)
    assert exponential(Estimate(800.0, 0.1)) == Estimate(math.inf, None)
    assert exponential(Estimate(math.inf, None)) == Estimate(math.inf, None)


def test_proportion() -> None:
    assert proportion(3, 12) == Estimate(0.25, math.sqrt(0.25 * 0.75 / 12))
    assert proportion(4, 4) == Estimate(1.0, 0.0)
