from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.norms import NORMS, K, normed_graph
from support.tiny_graphs import stats_of

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import LinearScan, find_linears
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC, Plan

Setting = tuple[LinearScan, ActivationStats, Plan]


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return normed_graph(
        rng,
        NORMS["dynamo RMSNorm"],
        readers="q = MatMul(n, Wq) k = MatMul(n, Wk) act = Tanh(x) down = MatMul(act, Wd)",
        outputs="float q, float k, float down",
        more={"Wd": rng.standard_normal((K, 3)).astype(np.float32)},
    )


@pytest.fixture
def setting(model: ir.Model) -> Setting:
    """q and k equalized (range 126 becomes 7), down static (range 1)."""
    top = np.ones(K)
    top[3] = 126
    scan, stats = find_linears(model), stats_of(model, {"n": top, "act": np.ones(K)})
    return scan, stats, choose_schemes(scan, stats, Config())


def edited(plan: Plan, name: str, **changes: object) -> Plan:
    rows = (replace(row, **changes) if row.name == name else row for row in plan.linears)  # type: ignore[arg-type]
    return replace(plan, linears=tuple(rows))


def test_a_plan_replays_as_it_was(setting: Setting, tmp_path: Path) -> None:
    scan, stats, plan = setting
    assert [entry.scheme for entry in plan.linears] == [LAE_STATIC, LAE_STATIC, STATIC]
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert complete_plan(Plan.load(tmp_path / "plan.json"), scan, stats) == (plan, ())


def test_missing_scales_and_sites_are_filled_in(setting: Setting) -> None:
    scan, stats, plan = setting
    bare = plan
    for name in ("q", "k", "down"):
        bare = edited(bare, name, input_scale=None, fold_site=None)
    assert complete_plan(bare, scan, stats) == (plan, ())


def test_one_reader_edited_to_per_token_keeps_the_fold(setting: Setting) -> None:
    scan, stats, plan = setting
    done, warnings = complete_plan(edited(plan, "k", scheme=PER_TOKEN), scan, stats)
    k = done.by_name()["k"]
    assert (k.scheme, k.fold_site, k.input_scale) == (PER_TOKEN, "n", None)
    assert not warnings


def test_other_schemes_keep_the_fold_until_the_equalization_is_taken_out(setting: Setting) -> None:
    scan, stats, plan = setting
    plan = edited(edited(plan, "k", scheme=PER_TOKEN), "q", scheme=SKIP)
    done, _ = complete_plan(plan, scan, stats)
    assert [(row.fold_site, row.input_scale) for row in done.linears[:2]] == [("n", None)] * 2
    plan = edited(edited(plan, "k", equalization="none"), "q", equalization="none")
    done, _ = complete_plan(plan, scan, stats)
    assert [(row.fold_site, row.input_scale) for row in done.linears[:2]] == [(None, None)] * 2


def test_searched_smoothing_scales_are_kept_and_the_input_scale_is_left_open(
    setting: Setting,
) -> None:
    scan, stats, plan = setting
    for name in ("q", "k"):
        plan = edited(plan, name, scheme=STATIC, equalization="balance:0.25", input_scale=None)
    done, warnings = complete_plan(plan, scan, stats)
    assert done == plan and not warnings and done.needs_sequential
    done, _ = complete_plan(edited(plan, "k", input_scale=0.5), scan, stats)
    assert done.by_name()["k"].input_scale == 0.5
    with pytest.raises(FptqError, match="read the same value"):
        complete_plan(edited(plan, "k", equalization="balance:0.5"), scan, stats)


def test_static_beside_an_equalized_reader_gets_the_equalized_range(setting: Setting) -> None:
    scan, stats, plan = setting
    done, _ = complete_plan(edited(plan, "k", scheme=STATIC, input_scale=None), scan, stats)
    assert done.by_name()["k"].input_scale == plan.by_name()["k"].input_scale
    assert done.by_name()["k"].fold_site == "n"


def test_static_without_a_fold_gets_the_full_range(setting: Setting) -> None:
    scan, stats, plan = setting
    plan = edited(plan, "k", scheme=PER_TOKEN, equalization="none")
    plan = edited(plan, "q", scheme=STATIC, equalization="none", input_scale=None)
    done, warnings = complete_plan(plan, scan, stats)
    assert done.by_name()["q"].input_scale == float(np.float32(126) / np.float32(127))
    assert not warnings


def test_a_scale_left_behind_is_warned_about(setting: Setting) -> None:
    scan, stats, plan = setting
    plan = edited(plan, "k", scheme=PER_TOKEN, equalization="none")
    plan = edited(plan, "q", scheme=STATIC, equalization="none")
    done, warnings = complete_plan(plan, scan, stats)
    assert done.by_name()["q"].input_scale == plan.by_name()["q"].input_scale  # kept as asked
    assert len(warnings) == 1
    assert "q: input_scale 0.05512 clips at 7, calibration saw 126" in warnings[0]


def test_a_tighter_scale_is_kept_without_a_warning(setting: Setting) -> None:
    scan, stats, plan = setting
    done, warnings = complete_plan(edited(plan, "down", input_scale=0.6 / 127), scan, stats)
    assert (done.by_name()["down"].input_scale, warnings) == (0.6 / 127, ())


def test_entries_come_back_in_graph_order(setting: Setting) -> None:
    """Emitters place shared nodes before the first entry's linear."""
    scan, stats, plan = setting
    shuffled = replace(plan, linears=plan.linears[::-1])
    assert complete_plan(shuffled, scan, stats) == (plan, ())


def test_an_impossible_fold_is_refused(setting: Setting) -> None:
    scan, stats, plan = setting
    with pytest.raises(FptqError, match=r"input of down, but .* \(Tanh\).*: use per_token"):
        complete_plan(edited(plan, "down", scheme=LAE_STATIC), scan, stats)


def test_a_fold_that_overflows_is_refused(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng, NORMS["dynamo RMSNorm"], readers="q = MatMul(n, Wq)", outputs="float q"
    )
    top = np.full(K, 1e-4)
    top[0] = 100
    scan, stats = find_linears(model), stats_of(model, {"n": top})
    plan = choose_schemes(scan, stats, Config())
    gain = model.graph.initializers["g"]
    gain.const_value = ir.tensor(np.full(K, 3e38, np.float32), name="g")
    with pytest.raises(FptqError, match="g divided by s overflows FLOAT"):
        complete_plan(plan, find_linears(model), stats)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-39, 1e39])
def test_unusable_scales_are_refused(setting: Setting, bad: float) -> None:
    scan, stats, plan = setting
    with pytest.raises(FptqError, match=r"down the input_scale .*: use null"):
        complete_plan(edited(plan, "down", input_scale=bad), scan, stats)


def test_a_plan_of_another_model_is_refused(setting: Setting) -> None:
    scan, stats, plan = setting
    with pytest.raises(FptqError, match="made for another model"):
        complete_plan(edited(plan, "q", k=K + 1), scan, stats)
