"""role:down, layer:0-3 and expressions: which linears --ignore and --int8-layers mean."""

from __future__ import annotations

import json

import pytest
from support.blocks import HEAD, blocks_model, sequential
from support.command_line import MODEL, RANDOM_FEW, command, refused

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.layer_selector import select
from fptq_onnx.scheme.plan import Plan

ALL = {f"l{i}_{role}" for i in range(3) for role in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.fixture
def scan(rng):
    return find_linears(blocks_model(rng, sequential(3) + HEAD))


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("role:down", {"l0_down", "l1_down", "l2_down"}),
        ("role:head", {"head"}),
        ("layer:1", {name for name in ALL if name[1] == "1"}),
        ("layer:0-1", {name for name in ALL if name[1] in "01"}),
        ("layer:2-9", {name for name in ALL if name[1] == "2"}),
        ("l[02]_[qk]$", {"l0_q", "l0_k", "l2_q", "l2_k"}),
        ("^(head|l1_o)$", {"head", "l1_o"}),
    ],
)
def test_what_an_expression_means(scan, expression, wanted):
    assert select(scan, "--ignore", (expression,)) == dict.fromkeys(wanted, expression)


def test_several_add_up(scan):
    found = select(scan, "--int8-layers", ("role:head", "layer:0", "role:down"))
    assert set(found) == {"head", "l1_down", "l2_down"} | {n for n in ALL if n[1] == "0"}
    assert select(scan, "--ignore", ()) == {}


@pytest.mark.parametrize(
    ("expression", "saying"),
    [
        ("role:qkv", "matches no linear: the roles here are q, k, v, o, gate, up, down, head"),
        ("layer:3", "matches no linear: the layers here are 0 to 2"),
        ("absent", "matches no linear: names look like 'l0_q'"),
    ],
)
def test_what_matches_nothing_is_told_what_there_is(scan, expression, saying):
    with pytest.raises(FptqError, match=f"--ignore '{expression}' {saying}"):
        select(scan, "--ignore", ("role:o", expression))


@pytest.mark.parametrize(
    ("expression", "saying"),
    [
        ("", "is empty"),
        ("role:downn", "names no role: use one of q, k, v, "),
        ("role:", "names no role"),
        ("layer:first", "has no layer: write layer:0"),
        ("layer:", "has no layer"),
        ("layer:-1", "has no layer"),
        ("layer:3-1", "ends before it begins"),
        ("(", "is not a regular expression"),
    ],
)
@pytest.mark.parametrize("option", ["ignore", "int8_layers"])
def test_what_makes_no_sense_is_refused_before_any_work(option, expression, saying):
    with pytest.raises(FptqError, match=f"{flag(option)} .*{saying}"):
        Config(**{option: (expression,)})


@pytest.mark.slow
def test_the_command_line_keeps_them_in_float_and_says_where_each_linear_is(tmp_path):
    out = tmp_path / "out"
    arguments = ("--recipe", "paper", "--ignore", "role:down", "--ignore", "layer:4-5")
    done = command("convert", MODEL, "-o", out, *arguments, "--verify-samples", "0", *RANDOM_FEW)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "report.json").read_text())["per_linear"]
    assert len(rows) == 31
    for row in rows:
        wanted = row["role"] == "down" or row["layer"] in (4, 5)
        assert (row["scheme"] == "skip") == wanted
        # The embedded model's names say where a linear really is; the finder never read them.
        layer, _, module = row["path"].removeprefix("model.layers.").partition(".")
        if row["path"].startswith("model.layers."):
            role = {"qkv_proj": "qkv", "o_proj": "o"}.get(module.split(".")[1])
            assert row["role"] == (role or module.split(".")[1].removesuffix("_proj"))
            assert row["layer"] == int(layer)
        else:
            assert (row["role"], row["layer"]) == ("head", None)
    for show in (out, MODEL):
        options = () if show == out else RANDOM_FEW
        shown = command("inspect", show, *options)
        assert shown.returncode == 0, shown.stderr
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert ["model.layers.3.mlp.down_proj", "3", "down"] in [line[:3] for line in lines]
        assert ["lm_head", "-", "head"] in [line[:3] for line in lines]
        linears = json.loads(command("inspect", show, "--json", *options).stdout)["linears"]
        assert [(item["role"], item["layer"]) for item in linears] == [
            (row["role"], row["layer"]) for row in rows
        ]


def test_a_role_that_is_not_there_is_one_error(tmp_path):
    arguments = ("-o", tmp_path / "out", "--ignore", "role:fc1", *RANDOM_FEW)
    refused("convert", MODEL, *arguments, saying="'role:fc1' matches no linear: the roles here are")
    assert not list(tmp_path.iterdir())


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


class NoCalibration(Samples):
    """Samples that must not be asked for."""

    def statistics(self, *given, **options):
        raise AssertionError("calibrated before the names were checked")


@pytest.mark.parametrize("option", ["ignore", "int8_layers"])
@pytest.mark.parametrize("expression", ["layer:7", "role:fc1", "no_such_name"])
def test_what_matches_nothing_is_refused_before_calibration(tmp_path, option, expression):
    config = Config(**{option: (expression,)})
    with pytest.raises(FptqError, match=f"{flag(option)} '{expression}' matches no linear"):
        convert(MODEL, tmp_path / "out", samples=NoCalibration(), config=config)
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_model_is_refused_before_calibration(tmp_path):
    given = {"samples": NoCalibration(), "plan": Plan(15, 150, ())}
    with pytest.raises(FptqError, match="the plan lacks"):
        convert(MODEL, tmp_path / "out", **given)
    with pytest.raises(FptqError, match="--ignore and --plan cannot be combined"):
        convert(MODEL, tmp_path / "out", config=Config(ignore=("role:down",)), **given)
    with pytest.raises(FptqError, match="--int8-layers and --plan cannot be combined"):
        convert(MODEL, tmp_path / "out", config=Config(int8_layers=("role:down",)), **given)
