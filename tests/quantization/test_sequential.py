"""The walk: what it stores is what its plan says, and the written model computes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.sequential_runs import Setting
from support.tiny_graphs import run

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.numerics.smoothing_scales import CANDIDATES
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import FLOAT, LAE_STATIC, PER_TOKEN, STATIC, Plan
from fptq_onnx.scheme.weight_store import WeightStore

BLOCK = 32


@pytest.fixture
def setting(rng: np.random.Generator, tmp_path: Path) -> Setting:
    return Setting(rng, tmp_path)


def check_same(a: WeightStore, b: WeightStore, names: list[str]) -> None:
    for name in names:
        one, other = a.get(name), b.get(name)
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.scales, other.scales)
        assert (one.zero_points is None) == (other.zero_points is None)
        if one.zero_points is not None:
            np.testing.assert_array_equal(one.zero_points, other.zero_points)


NAMES = ["g", "up", "down"]
CONFIGS = {
    "all measured": Config(block_size=BLOCK),
    "asymmetric mse": Config(block_size=BLOCK, weights="mse", symmetric=False),
    "thresholds": Config(block_size=BLOCK, policy="thresholds", v0=1, v1=1e4),
    "smoothquant": Config(block_size=BLOCK, equalization="smoothquant"),
    "lae": Config(block_size=BLOCK, equalization="lae", v0=1, v1=1e4),
    "rtn, all per token": Config(block_size=BLOCK, weights="rtn", policy="thresholds", v0=0, v1=0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_replayed_plan_gives_the_same_bits(setting: Setting, tmp_path: Path, name: str) -> None:
    """Also through plan.json and complete_plan, as `--plan` takes it."""
    result, store = setting.solve(CONFIGS[name])
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    read, warnings = complete_plan(Plan.load(tmp_path / "plan.json"), setting.scan, setting.stats)
    assert read == result.plan and not warnings
    again, other = setting.solve(CONFIGS[name], read, replay=True)
    assert again.plan == result.plan
    assert set(again.scales) == set(result.scales)
    for key, smoothing in result.scales.items():
        np.testing.assert_array_equal(again.scales[key], smoothing)
    check_same(store, other, NAMES)


def test_it_is_deterministic(setting: Setting) -> None:
    (first, a), (second, b) = (setting.solve(Config(block_size=BLOCK)) for _ in range(2))
    assert first.plan == second.plan
    check_same(a, b, NAMES)
    assert [e.to_dict() for e in first.errors] == [e.to_dict() for e in second.errors]


@pytest.mark.parametrize("equalization", CANDIDATES)
def test_stored_weights_are_those_of_the_folded_model(setting: Setting, equalization: str) -> None:
    """With 8 bits in one group and rounding to nearest: W within half a step, folds included.

    So the model whose linears are replaced by what is stored computes what the original does.
    """
    config = Config(block_size=-1, weights="rtn", policy="thresholds", v0=0, v1=0, w8=(".",))
    plan = setting.plan(config)
    rows = tuple(replace(entry, equalization=equalization, weight_bits=8) for entry in plan.linears)
    result, store = setting.solve(config, replace(plan, linears=rows), replay=True)
    assert set(result.scales) == (set() if equalization == "none" else {"n", "up"})
    folded = setting.loaded.model.clone()
    fold_into_producers(folded, result.scales)
    for name, linear in find_linears(folded).by_name().items():
        found = store.get(name)
        steps = found.scales[0]
        w = linear.weight.load()
        assert (np.abs(dequantize(found) - w) <= steps * (0.5001 + 127 * 2.0**-11)).all()
    x = setting.batches[0]["x"]
    np.testing.assert_allclose(
        run(folded, {"x": x})["down"], run(setting.model, {"x": x})["down"], rtol=1e-3, atol=1e-3
    )


def test_column_folds_change_scales_alone(setting: Setting) -> None:
    config = Config(block_size=BLOCK, weights="rtn", policy="thresholds", v0=0, v1=0)
    plan = setting.plan(config)
    rows = [replace(entry, equalization="none") for entry in plan.linears]
    plain, a = setting.solve(config, replace(plan, linears=tuple(rows)), replay=True)
    rows[2] = replace(rows[2], equalization="balance:0.25")
    result, b = setting.solve(config, replace(plan, linears=tuple(rows)), replay=True)
    assert set(result.scales) == {"up"} and not plain.scales
    smoothing = result.scales["up"]
    assert (smoothing != 1).any()
    np.testing.assert_array_equal(a.get("up").codes, b.get("up").codes)
    divided = (a.get("up").scales / smoothing).astype("f4").astype("f2")
    np.testing.assert_array_equal(b.get("up").scales, divided)
    np.testing.assert_array_equal(a.get("g").scales, b.get("g").scales)
    w = find_linears(setting.model).by_name()["down"].weight.load()
    expected = quantize_rtn(w * smoothing[:, None], BLOCK)
    np.testing.assert_array_equal(b.get("down").codes, expected.codes)
    assert result.plan.by_name()["down"].fold_site == "up"
    assert result.plan.needs_sequential


def test_the_errors_told_are_those_of_the_rounded_model(setting: Setting) -> None:
    """Recomputed from what was stored, per token, on the float model with weights replaced."""
    config = Config(block_size=BLOCK, weights="mse", policy="thresholds", v0=0, v1=0)
    rows = tuple(replace(entry, equalization="none") for entry in setting.plan(config).linears)
    result, store = setting.solve(config, replace(setting.plan(config), linears=rows), replay=True)
    by_name = find_linears(setting.model).by_name()
    for error in result.errors:
        w = by_name[error.name].weight.load().astype("f8")
        e = w - dequantize(store.get(error.name))
        expected = 10 * np.log10((w**2).sum() / (e**2).sum())
        np.testing.assert_allclose(error.weight.decibels, expected, rtol=1e-5)
        assert 15 < error.output_local.decibels < 60
        assert 15 < error.output_total.decibels <= error.output_local.decibels + 3


def test_linears_in_float_leave_the_streams_alike(setting: Setting) -> None:
    config = Config(ignore=(".",), block_size=BLOCK)
    result, store = setting.solve(config)
    assert all(entry.scheme == FLOAT for entry in result.plan.linears)
    assert not result.scales and not any(name in store for name in NAMES)
    assert all(error.output_total.error == 0 for error in result.errors)
    assert all(error.input_total.error == 0 for error in result.errors)


def test_one_linear_in_float_is_fed_what_the_others_leave(setting: Setting) -> None:
    config = Config(ignore=("down",), block_size=BLOCK)
    result, store = setting.solve(config)
    assert "down" not in store and "up" in store
    down = result.errors[2]
    assert down.weight.signal == 0
    assert 0 < down.output_total.error < down.output_total.signal


def test_policies(setting: Setting) -> None:
    static, _ = setting.solve(replace(CONFIGS["thresholds"], v0=1e6, v1=1e6))
    assert {entry.scheme for entry in static.plan.linears} <= {STATIC, LAE_STATIC}
    assert all(entry.input_scale for entry in static.plan.linears)
    token, _ = setting.solve(replace(CONFIGS["thresholds"], v0=0, v1=0))
    assert {entry.scheme for entry in token.plan.linears} == {PER_TOKEN}
    assert not any(entry.input_scale for entry in token.plan.linears)
    lae, _ = setting.solve(CONFIGS["lae"])
    assert set(lae.scales) == {"n"}  # the paper folds into no linear
    assert [entry.equalization for entry in lae.plan.linears] == ["lae", "lae", "none"]


def test_wider_forms_take_error_off(setting: Setting) -> None:
    result, _ = setting.solve(Config(block_size=64), try_wider=True)
    assert len(result.ratios) == 2
    for ratios in result.ratios:
        assert set(ratios) == {"zero points", "half blocks", "both", "8 bits"}
        # 255 steps for 15: 1 / 289 of the error; whatever the groups before it left is no part.
        assert 1 / 3000 < ratios["8 bits"] < 1 / 100


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite(setting: Setting, bad: float) -> None:
    setting.batches[1]["x"][3, 2] = bad
    with pytest.raises(FptqError, match=r"NaN or infinity in the input of .* runs well in float"):
        setting.solve(Config(block_size=BLOCK))


def test_a_weight_that_is_not_finite(setting: Setting) -> None:
    linear = find_linears(setting.loaded.model).by_name()["up"]
    w = linear.weight.load().copy()
    w[2, 2] = np.nan
    replace_weight(linear, ir.tensor(w))
    setting.scan = find_linears(setting.loaded.model)
    with pytest.raises(FptqError, match=r"cannot quantize .* of up: the weight holds NaN"):
        setting.solve(Config(block_size=BLOCK))


def test_a_replayed_fold_where_none_is_possible(setting: Setting) -> None:
    rows = list(setting.plan(PAPER).linears)
    setting.loaded.model.graph.outputs.append(setting.scan.linears[2].x)
    rows[2] = replace(rows[2], equalization="lae")
    with pytest.raises(
        FptqError,
        match=r"input of down by lae, but its input is made by p",
    ):
        setting.solve(Config(), replace(setting.plan(PAPER), linears=tuple(rows)), replay=True)
