from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.numerics.smoothing_scales import ChannelSizes, smoothing_scale
from fptq_onnx.quantization.scheme_search import Sample, SchemeSearch, fake_int8
from fptq_onnx.scheme.plan import PER_TOKEN, SKIP, LinearPlan

K, N = 16, 10


def entry(**changes: object) -> LinearPlan:
    given = {"name": "a", "path": "a", "k": K, "n": N, "range": 1.0, "scheme": PER_TOKEN,
             "reason": "", "fold_site": None, "input_scale": None, "block_size": -1,
             "symmetric": True, **changes}  # fmt: skip
    return LinearPlan(**given)  # type: ignore[arg-type]


class Setting:
    def __init__(self, rng: np.random.Generator, tokens: int = 200, n: int = N) -> None:
        self.x = (rng.standard_normal((tokens, K)) * np.geomspace(0.1, 30, K)).astype(np.float32)
        self.x8 = (self.x + 0.02 * rng.standard_normal(self.x.shape)).astype(np.float32)
        self.w = rng.standard_normal((K, n)).astype(np.float32)
        rms = np.sqrt(np.square(self.w, dtype=np.float64).mean(axis=1))
        self.sizes = ChannelSizes(
            np.abs(self.x).max(axis=0), self.x.std(axis=0), np.abs(self.w).max(axis=1), rms
        )

    def search(self, method: str, *entries: LinearPlan) -> SchemeSearch:
        rows = entries or (entry(),)
        sample = Sample(self.x, self.x8)
        return SchemeSearch(self.sizes, sample, [self.w] * len(rows), rows, method)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_int8_and_back(rng: np.random.Generator, scale: float | None) -> None:
    s = Setting(rng)
    smoothing = np.geomspace(0.5, 2, K).astype(np.float32)
    got = fake_int8(s.x, smoothing, scale)
    divided = s.x.astype("f8") / smoothing
    step = np.abs(divided).max(axis=1, keepdims=True) / 127 if scale is None else scale
    expected = np.clip(np.rint(divided / step), -128, 127) * step
    # Float32 divisions and products: 127 steps times 4 2^-24; a tie may go the other way.
    near = np.abs(divided / step - np.floor(divided / step) - 0.5) < 1e-4
    np.testing.assert_allclose(got[~near], expected[~near], atol=float(np.max(step)) * 1e-4)


@pytest.mark.parametrize("equalization", ["none", "lae", "balance:0.25"])
@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_errors_by_hand(
    rng: np.random.Generator, method: str, equalization: str, scale: float | None
) -> None:
    s = Setting(rng)
    smoothing = smoothing_scale(equalization, s.sizes)
    x8 = fake_int8(s.x8, smoothing, scale)
    w = s.w * smoothing[:, None]
    found = quantize_rtn(w, -1)
    if method == "mse":
        found = quantize_mse(w, np.square(x8, dtype=np.float64).mean(axis=0), -1)
    rounded = dequantize(found)
    expected = np.square(s.x.astype("f8") @ s.w - x8.astype("f8") @ rounded).sum()
    search = s.search(method)
    np.testing.assert_allclose(search.error(equalization, scale), expected, rtol=1e-4)
    if scale is None:
        alone = np.square(x8.astype("f8") @ (w - rounded)).sum()
        np.testing.assert_allclose(search.weight_error(equalization), alone, rtol=1e-4)


def test_gptq_where_there_are_tokens_enough(rng: np.random.Generator) -> None:
    """Twice as many as channels; with fewer it is the clip search."""
    many, few = Setting(rng, 2 * K), Setting(rng, 2 * K - 1)
    assert many.search("gptq").error("none") != many.search("mse").error("none")
    assert few.search("gptq").error("none") == few.search("mse").error("none")
    much = Setting(rng, 2000)
    assert much.search("gptq").weight_error("none") < much.search("mse").weight_error("none")


def test_inputs_that_are_all_zero(rng: np.random.Generator) -> None:
    s = Setting(rng)
    s.x[:], s.x8[:] = 0, 0
    assert s.search("gptq").error("none") == 0


def test_all_linears_of_a_stage_count_but_those_in_float(rng: np.random.Generator) -> None:
    s = Setting(rng)
    one = s.search("rtn").error("none")
    np.testing.assert_allclose(s.search("rtn", entry(), entry()).error("none"), 2 * one)
    assert s.search("rtn", entry(), entry(scheme=SKIP)).error("none") == one
    assert s.search("rtn", entry(scheme=SKIP)).error("none") == 0


def test_each_linear_is_rounded_as_planned(rng: np.random.Generator) -> None:
    s = Setting(rng)
    base = s.search("rtn").weight_error("none")
    assert s.search("rtn", entry(block_size=4)).weight_error("none") < base
    assert s.search("rtn", entry(weight_bits=8)).weight_error("none") < base / 100
    assert s.search("rtn").weight_error("none", "8 bits") < base / 100
    wide = entry(weight_bits=8)  # has no precision candidate: stays as planned
    search = s.search("rtn", wide)
    assert search.weight_error("none", "8 bits") == search.weight_error("none")
    asymmetric = s.search("rtn", entry(symmetric=False)).weight_error("none")
    assert s.search("rtn").weight_error("none", "zero points") == asymmetric != base


def test_columns_are_spread_over_all(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fptq_onnx.quantization.scheme_search._COLUMNS", 5)
    s = Setting(rng, n=9)
    part = s.w[:, ::2].copy()
    got = s.search("rtn").error("none")
    s.w = part
    np.testing.assert_allclose(got, s.search("rtn").error("none"), rtol=1e-6)


@pytest.mark.parametrize("huge", [1e25, np.nan])
def test_inputs_that_gptq_cannot_use_are_told_in_one_line(
    rng: np.random.Generator, huge: float
) -> None:
    s = Setting(rng)
    s.x8 = (s.x8 * huge).astype(np.float32)
    with pytest.raises(FptqError, match="cannot choose smoothing scales for a:"):
        s.search("gptq").error("none")
