from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import (
    FLOAT,
    LAE_STATIC,
    PER_TOKEN,
    STATIC,
    WEIGHT_ONLY,
    LinearPlan,
    Plan,
)


def entry(name: str, scheme: str = STATIC, **changes: object) -> LinearPlan:
    plain = LinearPlan(
        name=name,
        path=f"model.{name}",
        k=8,
        n=6,
        range=0.1,
        scheme=scheme,
        reason='a "quoted" reason, \u2264 v0',
        fold_site=None,
        input_scale=0.1 / 127,
        block_size=128,
        symmetric=True,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


PLAN = Plan(
    15.0,
    150.0,
    (
        entry("q", LAE_STATIC, fold_site="norm_b"),
        entry("k", FLOAT, fold_site="norm_b", input_scale=None),
        entry("up", PER_TOKEN, input_scale=None, block_size=-1),
        entry("down", LAE_STATIC, fold_site="norm_a", symmetric=False),
    ),
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    assert Plan.load(written(tmp_path, PLAN.to_json())) == PLAN


def test_json_is_one_line_per_linear() -> None:
    lines = PLAN.to_json().splitlines()
    assert len([line for line in lines if '"name"' in line]) == len(PLAN.linears)
    assert json.loads(PLAN.to_json())["format"] == "fptq-plan-1"


def test_an_empty_plan_round_trips(tmp_path: Path) -> None:
    empty = Plan(1, 2, ())
    assert Plan.load(written(tmp_path, empty.to_json())) == empty


def test_what_is_said_of_the_whole_model(tmp_path: Path) -> None:
    plan = replace(PLAN, weights="mse", embedding_bits=4)
    assert Plan.load(written(tmp_path, plan.to_json())) == plan
    config = plan.applied(Config(v0=3))
    assert (config.weights, config.embedding_bits, config.v0) == ("mse", 4, 3)
    assert PLAN.applied(Config(weights="rtn")) == Config(weights="rtn")
    for name, value in (("weights", "best"), ("weights", ["rtn"]), ("embedding_bits", 8.0)):
        text = json.dumps({**json.loads(plan.to_json()), name: value})
        with pytest.raises(FptqError, match=f"has the {name} .*use one of"):
            Plan.load(written(tmp_path, text))


def test_counts_and_sites() -> None:
    assert PLAN.counts() == {
        STATIC: 0, LAE_STATIC: 2, PER_TOKEN: 1, WEIGHT_ONLY: 0, FLOAT: 1,
    }  # fmt: skip
    assert list(PLAN.counts()) == [STATIC, LAE_STATIC, PER_TOKEN, WEIGHT_ONLY, FLOAT]
    assert PLAN.folded_sites() == ("norm_b", "norm_a")
    assert list(PLAN.by_name()) == ["q", "k", "up", "down"]


def edited(**changes: object) -> str:
    data = json.loads(PLAN.to_json())
    for key, value in changes.items():
        if value is ...:
            del data["linears"][0][key]
        else:
            data["linears"][0][key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "not a plan of this version"),
        ('{"format": "fptq-plan-0"}', "not a plan of this version"),
        ('{"format": "fptq-plan-1"}', "no list of linears"),
        ('{"format": "fptq-plan-1", "linears": "abc"}', "no list of linears"),
        ('{"format": "fptq-plan-1", "linears": []}', "no thresholds"),
        ('{"format": "fptq-plan-1", "linears": [], "v0": null, "v1": 1}', "no thresholds"),
        ('{"format": "fptq-plan-1", "linears": [3], "v0": 1, "v1": 1}', "wrong or missing fields"),
        (edited(k=...), r"wrong or missing fields: \['k'\]"),
        (edited(surprise=1), r"wrong or missing fields: \['surprise'\]"),
        (edited(scheme="fast"), "'q' the unknown scheme 'fast': use one of static"),
        (edited(k="8"), "'q' a k of '8', which is not of type int"),
        (edited(k=8.5), "k of 8.5"),
        (edited(k=True), "k of True"),
        (edited(symmetric=1), "symmetric of 1"),
        (edited(range="big"), "range of 'big'"),
        (edited(range=True), "range of True"),
        (edited(input_scale="1"), "input_scale of '1'"),
        (edited(fold_site=3), "fold_site of 3"),
        (edited(block_size=100), "block size 100: use one of 32"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(FptqError, match=match) as caught:
        Plan.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_such_file_a_folder_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match="cannot read the plan"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(FptqError, match="cannot read the plan"):
        Plan.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FptqError, match="is not UTF-8 text"):
        Plan.load(tmp_path / "binary")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(FptqError, match="not valid JSON"):
        Plan.load(tmp_path / "deep")


def test_integers_may_stand_for_floats(tmp_path: Path) -> None:
    plan = Plan.load(written(tmp_path, edited(range=3, input_scale=1)))
    assert (plan.linears[0].range, plan.linears[0].input_scale) == (3, 1)


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return build(
        "g (float[A, 8] x) => (float[A, 6] q, float[A, 6] k) {"
        " q = MatMul(x, W1) k = MatMul(x, W2) }",
        {"W1": weight(rng, 8, 6), "W2": weight(rng, 8, 6)},
    )


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ((entry("q"), entry("k"), entry("q")), "names a linear twice"),
        ((entry("q"), entry("k"), entry("v")), "names 'v', which is no linear of this model"),
        ((entry("q"), entry("k", n=5)), "'k' as 8 x 5, the model as 8 x 6"),
        ((entry("q"), entry("k", k=9)), "'k' as 9 x 6"),
        ((entry("q"),), r"lacks 'k' \(and 0 more\)"),
        ((), r"lacks 'q' \(and 1 more\)"),
    ],
)
def test_plans_of_another_model(
    model: ir.Model, entries: tuple[LinearPlan, ...], match: str
) -> None:
    with pytest.raises(FptqError, match=match):
        Plan(15, 150, entries).check_against(find_linears(model))


def test_a_plan_of_this_model(model: ir.Model) -> None:
    Plan(15, 150, (entry("k"), entry("q"))).check_against(find_linears(model))
