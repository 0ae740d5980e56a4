"""What is chosen is the best of what it judged; weights are rounded for what they meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from support.output_errors import moments_of
from support.sequential_runs import Setting
from support.tiny_graphs import run

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.numerics.smoothing_scales import CANDIDATES
from fptq_onnx.quantization import layer_group, scheme_decision
from fptq_onnx.quantization.fold_targets import FoldTarget
from fptq_onnx.quantization.scheme_search import SchemeSearch, fake_int8
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, STATIC

Judged = dict[tuple[str, bool], float]


class Witness(SchemeSearch):
    """Writes down what is judged: by formula and whether static."""

    seen: ClassVar[list[Judged]] = []

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        Witness.seen.append({})

    def error(self, equalization: str, scale: float | None = None) -> float:
        found = super().error(equalization, scale)
        Witness.seen[-1][equalization, scale is not None] = found
        return found


@pytest.fixture
def setting(rng: np.random.Generator, tmp_path: Path) -> Setting:
    return Setting(rng, tmp_path)


@pytest.mark.parametrize("weights", ["gptq", "rtn"])
def test_the_least_error_and_static_within_the_tolerance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setattr(layer_group, "SchemeSearch", Witness)
    Witness.seen.clear()
    result, _ = setting.solve(Config(block_size=32, weight_method=weights))
    plan = result.plan.by_name()
    for judged, name in zip(Witness.seen, ("g", "down"), strict=True):
        errors = {equalization: judged[equalization, False] for equalization in CANDIDATES}
        equalization = plan[name].equalization
        assert errors[equalization] == min(errors.values()) < max(errors.values())
        static = judged[equalization, True] <= 1.02 * judged[equalization, False]
        assert (plan[name].scheme in (STATIC, LAE_STATIC)) == static


@pytest.mark.parametrize(("tolerance", "schemes"), [(1e9, {STATIC, LAE_STATIC}), (0, {PER_TOKEN})])
def test_the_tolerance_decides(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tolerance: float, schemes: set[str]
) -> None:
    monkeypatch.setattr(scheme_decision, "STATIC_TOLERANCE", tolerance)
    result, _ = setting.solve(Config(block_size=32))
    assert {row.scheme for row in result.plan.linears} <= schemes


def test_thresholds_need_a_fold_between_them(setting: Setting) -> None:
    """Both inputs have ranges between v0 and v1; only the norm takes the paper's fold."""
    config = Config(
        block_size=32, activation_scheme="thresholds", equalization="lae", v0=0.01, v1=1e5
    )
    result, _ = setting.solve(config)
    assert [row.scheme for row in result.plan.linears] == [LAE_STATIC, LAE_STATIC, PER_TOKEN]
    low, _ = setting.solve(replace(config, v0=1e4))
    assert [row.scheme for row in low.plan.linears] == [STATIC] * 3
    high, _ = setting.solve(replace(config, v1=0.01))
    assert [row.scheme for row in high.plan.linears] == [PER_TOKEN] * 3


def test_what_overflows_is_not_chosen_and_not_replayed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: FoldTarget, smoothing: np.ndarray) -> str:
        return f"{self.name} overflows" if (smoothing != 1).any() else ""

    monkeypatch.setattr(FoldTarget, "overflow", overflow)
    for config in (Config(), Config(equalization="smoothquant"), Config(equalization="lae", v0=1)):
        result, _ = setting.solve(replace(config, block_size=32))
        assert {row.equalization for row in result.plan.linears} == {"none"}
    rows = tuple(replace(row, equalization="balance:0.5") for row in result.plan.linears)
    with pytest.raises(FptqError, match=r"input of g by balance:0.5, but n overflows: use"):
        setting.solve(Config(), replace(result.plan, linears=rows), as_planned=True)


@pytest.mark.parametrize("weights", ["gptq", "mse"])
def test_weights_are_rounded_for_the_divided_int8_input(setting: Setting, weights: str) -> None:
    """Of the first layer group, whose input no quantized linear has touched."""
    config = Config(
        block_size=32, weight_method=weights, activation_scheme="thresholds", v0=0, v1=0
    )
    plan = setting.plan(config)
    rows = tuple(replace(row, equalization="balance:0.5") for row in plan.linears[:2])
    plan = replace(plan, linears=(*rows, plan.linears[2]))
    result, store = setting.solve(config, plan, as_planned=True)
    smoothing = result.scales["n"]
    linears = find_linears(setting.model).by_name()
    clone = setting.model.clone()
    value = next(node for node in clone.graph if node.name == "n").outputs[0]
    value.dtype = linears["g"].weight.dtype
    clone.graph.outputs.append(value)
    x = np.concatenate([run(clone, batch)["n"] for batch in setting.batches])
    x8 = fake_int8(x, smoothing, None)
    w = linears["g"].weight.load() * smoothing[:, None]
    if weights == "gptq":
        expected = quantize_gptq(w, moments_of(x8, x / smoothing), 32)
    else:
        expected = quantize_mse(w, np.square(x8, dtype=np.float64).mean(axis=0), 32)
    found = store.get("g")
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-4)  # sums of two batches
