"""Plans that fold into the columns of a linear: read back, edited, refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from support.gated import FOLDABLE, M, gated_model
from support.tiny_graphs import build, stats_of, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.quantization.fold_targets import FoldTarget, fold_targets
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, STATIC, Plan


def setting(model: ir.Model) -> tuple:
    scan, stats = find_linears(model), stats_of(model, {})
    return scan, stats, choose_schemes(scan, stats, Config())


def edited(plan: Plan, name: str, **changes: object) -> Plan:
    rows = (replace(row, **changes) if row.name == name else row for row in plan.linears)  # type: ignore[arg-type]
    return replace(plan, linears=tuple(rows))


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return gated_model(rng, FOLDABLE["two readers"])


@pytest.mark.parametrize("scheme", [STATIC, LAE_STATIC])
@pytest.mark.parametrize("scale", [0.5, None])
def test_lae_before_columns_is_kept(model: ir.Model, scheme: str, scale: float | None) -> None:
    """A missing scale is left to sequential quantization, which finds the smoothing scales."""
    scan, stats, plan = setting(model)
    for name in ("down", "d2"):
        plan = edited(
            plan, name, scheme=scheme, equalization="lae", fold_site="up", input_scale=scale
        )
    done, warnings = complete_plan(plan, scan, stats)
    assert done == plan and not warnings
    assert done.needs_sequential


def test_readers_of_one_product_share_its_fold(model: ir.Model) -> None:
    scan, stats, plan = setting(model)
    done, _ = complete_plan(edited(plan, "down", equalization="balance:0.5"), scan, stats)
    found = {row.name: (row.equalization, row.fold_site) for row in done.linears}
    assert found["down"] == found["d2"] == ("balance:0.5", "up")
    assert found["g"] == found["up"] == ("none", None)
    wrong = edited(edited(plan, "down", equalization="lae"), "d2", equalization="balance:0.5")
    with pytest.raises(FptqError, match="read the same value"):
        complete_plan(wrong, scan, stats)


@pytest.mark.parametrize("equalization", ["LAE", "balance", "balance:2", "smooth:0.5"])
def test_an_unknown_formula_is_the_users_mistake(model: ir.Model, equalization: str) -> None:
    scan, stats, plan = setting(model)
    with pytest.raises(FptqError, match=f"the plan gives down no equalization '{equalization}'"):
        complete_plan(edited(plan, "down", equalization=equalization), scan, stats)


def test_no_site_at_all(model: ir.Model) -> None:
    scan, stats, plan = setting(model)
    with pytest.raises(FptqError, match=r"equalizes the input of up, but .*: use equalization"):
        complete_plan(edited(plan, "up", equalization="lae"), scan, stats)


def test_a_gain_comes_before_columns_here_and_in_the_walk(rng: np.random.Generator) -> None:
    """A product of a linear and a constant [K] could take a fold on either side."""
    model = build(
        "g_ (float[A, 6] x) => (float[A, 5] y) { n = Tanh(x) up = MatMul(n, W1)"
        " p = Mul(up, gain) y = MatMul(p, W2) }",
        {"W1": weight(rng, 6, M), "gain": weight(rng, M), "W2": weight(rng, M, 5)},
    )
    scan, stats, plan = setting(model)
    done, _ = complete_plan(edited(plan, "y", equalization="lae"), scan, stats)
    assert done.by_name()["y"].fold_site == "p"
    from fptq_onnx.quantization.subgraphs import find_layer_groups

    site = fold_targets(find_layer_groups(model.graph, scan.linears), scan.linears)["p"]
    assert isinstance(site, FoldTarget) and site.name == "p" and site.norm is not None
