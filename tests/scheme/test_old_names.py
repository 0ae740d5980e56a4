"""Names of version 0.1: accepted with a warning, and the same as those of today."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.old_names import CONFIG_FIELDS
from fptq_onnx.scheme.plan import PER_TOKEN, SKIP, STATIC, Plan
from fptq_onnx.scheme.recipes import find_recipe

OLD = {"weights": "mse", "policy": "static", "w8": ("head",), "bits_budget": 5.0}
NEW = {"weight_method": "mse", "activation_scheme": "static", "int8_layers": ("head",),
       "target_bits": 5.0}  # fmt: skip
OLD_PLAN = Path(__file__).parent.parent / "conversion" / "version_0_1" / "plan.json"


def test_keywords() -> None:
    with pytest.warns(DeprecationWarning, match=r"Config.w8 is now int8_layers"):
        old = Config(**OLD)  # type: ignore[arg-type]
    assert old == Config(**NEW)  # type: ignore[arg-type]
    for name in ("clean_up", "optimize_graph"):
        with pytest.warns(DeprecationWarning, match=f"Config.{name} is now graph_optimization"):
            assert not Config(**{name: False}).graph_optimization  # type: ignore[arg-type]


@pytest.mark.parametrize(("old", "value"), OLD.items())
def test_replace_takes_an_old_keyword_and_changes_nothing_else(old: str, value: object) -> None:
    with pytest.warns(DeprecationWarning, match=f"Config.{old} is now {CONFIG_FIELDS[old]}"):
        changed = replace(PAPER, **{old: value})  # type: ignore[arg-type]
    assert asdict(changed) == {**asdict(PAPER), CONFIG_FIELDS[old]: value}


def test_a_recipe_takes_old_keywords() -> None:
    with pytest.warns(DeprecationWarning):
        config = find_recipe("w8a8").config(weights="gptq", policy="per_token")
    assert (config.weight_method, config.activation_scheme) == ("gptq", "per_token")


@pytest.mark.parametrize(("old", "new"), CONFIG_FIELDS.items())
def test_old_attributes_give_the_value_of_today(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"Config.{old} is now {new}"):
        assert getattr(PAPER, old) == getattr(PAPER, new)
    assert old not in {field.name for field in fields(Config)}


def test_activations_in_float_are_weight_only() -> None:
    with pytest.warns(DeprecationWarning, match="'float' is now 'weight_only'"):
        assert Config(activation_scheme="float").activation_scheme == "weight_only"


def test_the_warning_names_the_line_of_the_caller() -> None:
    with pytest.warns(DeprecationWarning) as found:
        Config(w8=("head",), activation_scheme="float")  # type: ignore[call-arg]
    assert {Path(one.filename).name for one in found} == {Path(__file__).name}


def test_names_of_today_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = replace(Config(**NEW), target_bits=None)  # type: ignore[arg-type]
        assert config.target_bits is None
        Plan(1, 2, (), weight_method="rtn").applied(config)


def test_unknown_keywords_and_bad_values_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        Config(no_such_option=1)  # type: ignore[call-arg]
    for value in ("best", ["static"], None):
        with pytest.raises(FptqError, match=r"--activation-scheme .* is not one of"):
            Config(activation_scheme=value)  # type: ignore[arg-type]


def test_a_plan_of_version_0_1_loads() -> None:
    data = json.loads(OLD_PLAN.read_text(encoding="utf-8"))
    assert data["format"] == "fptq-plan-1" and data["weights"] == "rtn"
    plan = Plan.load(OLD_PLAN)
    assert plan.weight_method == "rtn"
    counts = {name: count for name, count in plan.counts().items() if count}
    assert counts == {STATIC: 22, PER_TOKEN: 4, SKIP: 5}
    for row, entry in zip(data["linears"], plan.linears, strict=True):
        assert asdict(entry) == {
            **row,
            "scheme": "skip" if row["scheme"] == "float" else entry.scheme,
        }


def test_it_is_written_with_the_names_of_today(tmp_path: Path) -> None:
    plan = Plan.load(OLD_PLAN)
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    data = json.loads(plan.to_json())
    assert data["format"] == "fptq-plan-2" and data["weight_method"] == "rtn"
    assert "weights" not in data and "float" not in {row["scheme"] for row in data["linears"]}
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("format", ["fptq-plan-1", "fptq-plan-2"])
def test_a_plan_edited_by_hand_may_say_float(tmp_path: Path, format: str) -> None:
    data = json.loads(OLD_PLAN.read_text(encoding="utf-8"))
    data["format"] = format
    data["linears"][7]["scheme"] = "float"
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    assert Plan.load(tmp_path / "plan.json").linears[7].scheme == SKIP


def test_other_formats_and_damaged_old_plans_are_refused(tmp_path: Path) -> None:
    data = json.loads(OLD_PLAN.read_text(encoding="utf-8"))
    row = data["linears"][0]
    for change, saying in (
        ({"format": "fptq-plan-0"}, "is not a plan of this version"),
        ({"weights": "best"}, "has the weight_method 'best'"),
        ({"linears": {}}, "has no list of linears"),
        ({"linears": [1]}, "wrong or missing fields"),
        ({"linears": [{**row, "scheme": ["float"]}]}, "which is not of type str"),
        ({"linears": [{**row, "scheme": "int4"}]}, "unknown scheme 'int4'"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps({**data, **change}), encoding="utf-8")
        with pytest.raises(FptqError, match=saying):
            Plan.load(tmp_path / "plan.json")
