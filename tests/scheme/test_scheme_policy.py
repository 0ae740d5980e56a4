"""The thresholds and their words, and what one function writes into a plan."""

from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.graph.declined import Declined
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC, WEIGHT_ONLY, LinearPlan
from fptq_onnx.scheme.scheme_policy import asks_for_lae, by_thresholds, with_scheme

NO_GAIN = Declined("x", "no gain")


def entry(scheme: str = PER_TOKEN, equalization: str = "none") -> LinearPlan:
    return LinearPlan("y", "", 4, 4, 3.0, scheme, "before", None, 0.5, 32, True, 4, equalization)


@pytest.mark.parametrize(
    ("largest", "obstacle", "static", "reason"),
    [
        (15.0, NO_GAIN, True, "range 15 <= v0 = 15"),
        (150.0, None, True, "v0 = 15 < range 150 <= v1 = 150"),
        (20.0, NO_GAIN, False,
         "v0 = 15 < range 20 <= v1 = 150, but it cannot be equalized: no gain"),
        (151.0, None, False, "range 151 > v1 = 150"),
    ],
)  # fmt: skip
def test_the_thresholds(
    largest: float, obstacle: Declined | None, static: bool, reason: str
) -> None:
    assert by_thresholds(largest, Config(), obstacle) == (static, reason)


def test_between_the_thresholds_is_where_lae_is_asked_for() -> None:
    config = Config(v0=2, v1=9)
    assert [asks_for_lae(size, config) for size in (2.0, 2.1, 9.0, 9.1)] == [False, True, True,
                                                                            False]  # fmt: skip


@pytest.mark.parametrize(("equalization", "scheme"), [("none", STATIC), ("lae", LAE_STATIC),
                                                      ("balance:0.5", STATIC)])  # fmt: skip
def test_a_static_scale_is_that_of_the_largest(equalization: str, scheme: str) -> None:
    found = with_scheme(entry(equalization=equalization), static=True, largest=12.7, reason="why")
    assert (found.scheme, found.reason) == (scheme, "why")
    assert found.input_scale == float(np.float32(12.7) / np.float32(127))


def test_per_token_has_no_scale_and_says_what_is_left_out() -> None:
    found = with_scheme(entry(STATIC), static=False, largest=9, reason="why", left_out="lae")
    assert (found.scheme, found.input_scale) == (PER_TOKEN, None)
    assert found.reason == "why; a few tokens are far larger than the rest, so lae is left out"


@pytest.mark.parametrize("scheme", [SKIP, WEIGHT_ONLY])
def test_float_inputs_stay(scheme: str) -> None:
    assert with_scheme(entry(scheme), static=True, largest=9, reason="why") == entry(scheme)
