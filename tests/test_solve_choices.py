"""What the walk chooses is the best of what it judged; weights are rounded for what they meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from output_errors import moments_of
from tiny_graphs import run
from walks import Setting

from fptq_onnx import solve_weights as module
from fptq_onnx import stage_decision
from fptq_onnx.config import Config
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears import find_linears
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.fold_scales import SEARCHED
from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.plan import LAE_STATIC, PER_TOKEN, STATIC
from fptq_onnx.stage_choice import Judge, fake_int8
from fptq_onnx.stage_sites import StageSite

Judged = dict[tuple[str, bool], float]


class Witness(Judge):
    """Writes down what is judged: by formula and whether static."""

    seen: ClassVar[list[Judged]] = []

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        Witness.seen.append({})

    def error(self, formula: str, scale: float | None = None) -> float:
        found = super().error(formula, scale)
        Witness.seen[-1][formula, scale is not None] = found
        return found


@pytest.fixture
def setting(rng: np.random.Generator, tmp_path: Path) -> Setting:
    return Setting(rng, tmp_path)


@pytest.mark.parametrize("weights", ["gptq", "rtn"])
def test_the_least_error_and_static_within_the_tolerance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setattr(module, "Judge", Witness)
    Witness.seen.clear()
    solved, _ = setting.solve(Config(block_size=32, weights=weights))
    plan = solved.plan.by_name()
    for judged, name in zip(Witness.seen, ("g", "down"), strict=True):
        errors = {formula: judged[formula, False] for formula in SEARCHED}
        formula = plan[name].equalization
        assert errors[formula] == min(errors.values()) < max(errors.values())
        static = judged[formula, True] <= 1.02 * judged[formula, False]
        assert (plan[name].scheme in (STATIC, LAE_STATIC)) == static


@pytest.mark.parametrize(("tolerance", "schemes"), [(1e9, {STATIC, LAE_STATIC}), (0, {PER_TOKEN})])
def test_the_tolerance_decides(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tolerance: float, schemes: set[str]
) -> None:
    monkeypatch.setattr(stage_decision, "STATIC_TOLERANCE", tolerance)
    solved, _ = setting.solve(Config(block_size=32))
    assert {row.scheme for row in solved.plan.linears} <= schemes


def test_thresholds_need_a_fold_between_them(setting: Setting) -> None:
    """Both inputs have ranges between v0 and v1; only the norm takes the paper's fold."""
    config = Config(block_size=32, policy="thresholds", equalization="lae", v0=0.01, v1=1e5)
    solved, _ = setting.solve(config)
    assert [row.scheme for row in solved.plan.linears] == [LAE_STATIC, LAE_STATIC, PER_TOKEN]
    low, _ = setting.solve(replace(config, v0=1e4))
    assert [row.scheme for row in low.plan.linears] == [STATIC] * 3
    high, _ = setting.solve(replace(config, v1=0.01))
    assert [row.scheme for row in high.plan.linears] == [PER_TOKEN] * 3


def test_what_overflows_is_not_chosen_and_not_replayed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: StageSite, divisor: np.ndarray) -> str:
        return f"{self.name} overflows" if (divisor != 1).any() else ""

    monkeypatch.setattr(StageSite, "overflow", overflow)
    for config in (Config(), Config(equalization="smoothquant"), Config(equalization="lae", v0=1)):
        solved, _ = setting.solve(replace(config, block_size=32))
        assert {row.equalization for row in solved.plan.linears} == {"none"}
    rows = tuple(replace(row, equalization="balance:0.5") for row in solved.plan.linears)
    with pytest.raises(FptqError, match=r"input of g by balance:0.5, but n overflows: use"):
        setting.solve(Config(), replace(solved.plan, linears=rows), replay=True)


@pytest.mark.parametrize("weights", ["gptq", "mse"])
def test_weights_are_rounded_for_the_divided_int8_input(setting: Setting, weights: str) -> None:
    """Of the first stage, whose input no quantized linear has touched."""
    config = Config(block_size=32, weights=weights, policy="thresholds", v0=0, v1=0)
    plan = setting.plan(config)
    rows = tuple(replace(row, equalization="balance:0.5") for row in plan.linears[:2])
    plan = replace(plan, linears=(*rows, plan.linears[2]))
    solved, store = setting.solve(config, plan, replay=True)
    divisor = solved.scales["n"]
    linears = find_linears(setting.model).by_name()
    clone = setting.model.clone()
    value = next(node for node in clone.graph if node.name == "n").outputs[0]
    value.dtype = linears["g"].weight.dtype
    clone.graph.outputs.append(value)
    x = np.concatenate([run(clone, batch)["n"] for batch in setting.batches])
    x8 = fake_int8(x, divisor, None)
    w = linears["g"].weight.load() * divisor[:, None]
    if weights == "gptq":
        expected = quantize_gptq(w, moments_of(x8, x / divisor), 32)
    else:
        expected = quantize_mse(w, np.square(x8, dtype=np.float64).mean(axis=0), 32)
    found = store.get("g")
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-4)  # sums of two batches
