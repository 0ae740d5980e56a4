from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.sampling import Sampler, SamplingSettings, likely_tokens

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def test_greedy_takes_the_most_likely() -> None:
    assert Sampler(SamplingSettings()).choose(LOGITS) == 1
    assert Sampler(SamplingSettings(top_k=3, top_p=0.5)).choose(LOGITS) == 1


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=0))
    draws = 20000
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(draws)], minlength=5)
    # Five standard deviations of a share of at most 1/2.
    np.testing.assert_allclose(counts / draws, np.exp(LOGITS), atol=5 * 0.5 / draws**0.5)


def test_temperature_sharpens() -> None:
    _, probabilities = likely_tokens(LOGITS, SamplingSettings(temperature=0.5))
    squared = np.sort(np.exp(LOGITS.astype(float)) ** 2)[::-1]
    np.testing.assert_allclose(probabilities, squared / squared.sum(), rtol=1e-6)


def test_top_k_and_top_p_keep_the_likely_ones() -> None:
    def kept(**settings: float | int) -> list[int]:
        tokens, probabilities = likely_tokens(LOGITS, SamplingSettings(temperature=1, **settings))  # type: ignore[arg-type]
        assert probabilities.sum() == pytest.approx(1)
        return tokens.tolist()

    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=99) == [1, 3, 4, 0, 2]
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.41) == [1, 3]  # the first ones that reach it
    assert kept(top_p=0.84) == [1, 3, 4]
    # Of the two that top-k left, the first alone has 4/7.
    assert kept(top_k=2, top_p=0.5) == [1]


def test_a_seed_repeats_the_draws() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(SamplingSettings(temperature=1, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(20)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(-1) == drawn(-1) != drawn(1)
    assert drawn(-(2**63)) != drawn(2**63 - 1)


def test_repetition_penalty_holds_for_prompt_and_text() -> None:
    logits = np.array([3.0, 2.9, -0.2, -0.3], np.float32)
    settings = SamplingSettings(repetition_penalty=2.0)
    sampler = Sampler(settings, prompt=[0])
    assert [sampler.choose(logits) for _ in range(2)] == [1, 0]  # 3/2 < 2.9, then 1.5 > 1.45
    assert Sampler(settings, prompt=[2]).choose(np.array([-9, -9, -0.2, -0.3], np.float32)) == 3
    assert logits[0] == 3.0  # not changed


def test_nan_is_an_error() -> None:
    broken = LOGITS.copy()
    broken[3] = np.nan
    for settings in (SamplingSettings(), SamplingSettings(temperature=1)):
        with pytest.raises(FptqError, match="NaN"):
            Sampler(settings).choose(broken)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": -0.1},
        {"top_p": 1.5}, {"repetition_penalty": 0.0}, {"seed": 2**63},
        {"seed": -(2**63) - 1},
        {"repetition_penalty": 1e-50}, {"repetition_penalty": 1e300},
    ],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(FptqError):
        SamplingSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(2.0, 0.0), (5e-324, 1.0), (1e-9, 1.0), (1.0, 5e-324)]
)
def test_the_ends_of_the_ranges_take_the_most_likely_token(
    temperature: float, top_p: float
) -> None:
    settings = SamplingSettings(temperature=temperature, top_p=top_p)
    tokens, probabilities = likely_tokens(LOGITS, settings)
    assert (tokens[0], probabilities[0]) == (1, 1.0)
    for seed in range(5):
        assert Sampler(replace(settings, seed=seed)).choose(LOGITS) == 1
