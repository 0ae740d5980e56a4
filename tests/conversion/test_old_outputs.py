"""Outputs of version 0.1 still serve: its plans are replayed, its folders inspected and packaged.

version_0_1/ has the plan and the report that version 0.1 wrote for the embedded model, with OPTIONS
by their names of then.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from support.command_line import MODEL, command

from fptq_onnx.scheme.plan import Plan

STORED = Path(__file__).parent / "version_0_1"
FEW = ("--calibration", "random", "--max-samples", "4", "--max-seq-len", "16")
OPTIONS = ("--recipe", "paper", "--ignore", "layer:0", "--int8-layers", "lm_head")


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("today") / "story"
    done = command("convert", MODEL, "-o", folder, *OPTIONS, *FEW, "--verify-samples", "0")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def old(today: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as version 0.1 wrote it: its graph and weights are those of today."""
    folder = Path(shutil.copytree(today, tmp_path_factory.mktemp("old") / "story"))
    for name in ("plan.json", "report.json"):
        shutil.copy(STORED / name, folder / name)
    return folder


def test_the_decisions_are_the_same(today: Path) -> None:
    now, then = Plan.load(today / "plan.json"), Plan.load(STORED / "plan.json")
    assert (now.weight_method, now.embedding_bits) == (then.weight_method, then.embedding_bits)
    for mine, theirs in zip(now.linears, then.linears, strict=True):
        assert mine.range == pytest.approx(theirs.range, rel=1e-5)  # sums of other kernels
        assert (mine.input_scale is None) == (theirs.input_scale is None)
        assert (mine.input_scale or 0) == pytest.approx(theirs.input_scale or 0, rel=1e-5)
        measured = dict.fromkeys(("range", "input_scale", "reason"))
        assert {**asdict(mine), **measured} == {**asdict(theirs), **measured}


def test_the_report_has_the_names_of_today(today: Path) -> None:
    now = json.loads((today / "report.json").read_text())
    then = json.loads((STORED / "report.json").read_text())
    assert now["format"] == "fptq-report-2" and "format" not in then
    renamed = {"weights": "weight_method", "policy": "activation_scheme", "w8": "int8_layers",
               "bits_budget": "target_bits", "optimize_graph": "graph_optimization"}  # fmt: skip
    options = {renamed.get(name, name): value for name, value in then["options"].items()}
    assert now["options"] == options
    schemes = {("skip" if name == "float" else name): n for name, n in then["schemes"].items()}
    assert now["schemes"] == schemes
    assert now["bits_per_weight"] == then["bits_per_weight"]


def test_a_plan_is_replayed(today: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(
        "convert", MODEL, "-o", out, "--plan", STORED / "plan.json", *FEW, "--verify-samples", "0"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "22 static, 0 equalized (LAE) + static, 4 per-token dynamic, 5 float (skip)" in done.stdout
    )
    data = "model.onnx.data"
    assert (out / data).read_bytes() == (today / data).read_bytes()


def test_a_folder_is_inspected(old: Path) -> None:
    done = command("inspect", old)
    assert done.returncode == 0, done.stderr
    assert "converted    target custom, by fptq-onnx 0.1.0" in done.stdout
    assert "5 float (skip)" in done.stdout
    data = json.loads(command("inspect", old, "--json").stdout)
    assert [row["scheme"] for row in data["linears"]].count("skip") == 5
    assert data["report"]["options"]["w8"] == ["lm_head"]  # as the file has it


def test_a_folder_runs_and_is_packaged(old: Path, tmp_path: Path) -> None:
    prompt = ("Once upon a time", "--max-tokens", "4", "--ids")
    done = command("run", old, *prompt)
    assert done.returncode == 0 and len(done.stdout.split()) == 4, done.stderr
    package = tmp_path / "story.tar.gz"
    done = command("package", old, "--for", "edge", "-o", package)
    assert done.returncode == 0, done.stderr
    assert command("package", "--check", package).returncode == 0
