"""passes/README.md and the lists in the code have the same passes, in the same order."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from fptq_onnx.conversion.graph_optimization import ALL, GRAPH_OPTIMIZATION, WHAT
from fptq_onnx.conversion.targets import FLOAT_TARGET, target_passes
from fptq_onnx.passes import Pass, PassResult, pass_name
from fptq_onnx.passes.normalize import STEPS
from fptq_onnx.scheme.config import TARGETS, Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

FOLDER = Path(__file__).resolve().parents[2] / "passes"
# The module of each, by its name: passes of one list have a folder of their own.
MODULES = {
    path.stem: ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if not path.stem.startswith("_")
}
FILES = set(MODULES)


def sections() -> dict[str, list[str]]:
    """By heading, the names of the passes in its table."""
    found: dict[str, list[str]] = {}
    for part in (FOLDER / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, text = part.split("\n", 1)
        found[heading] = re.findall(r"^\| \[(\w+)\]\((?:\w+/)?\1\.py\) \|", text, re.MULTILINE)
    return found


def names(passes: Sequence[Pass]) -> list[str]:
    """Of those with a file of their own."""
    return [name for each in passes if not (name := pass_name(each)).startswith("_")]


def function(name: str) -> Callable[..., object]:
    return getattr(importlib.import_module(f"fptq_onnx.passes.{MODULES[name]}"), name)


def test_normalization() -> None:
    assert sections()["Normalization"] == ["normalize", *names(STEPS)]


def test_graph_optimization() -> None:
    assert set(WHAT) == set(ALL)  # what the count of each counts
    assert sections()["Graph optimization"] == names(GRAPH_OPTIMIZATION)


@pytest.mark.parametrize("target", [*TARGETS, FLOAT_TARGET])
def test_targets(target: str, tmp_path: Path) -> None:
    config = replace(Config(), embedding_bits=8)
    passes = target_passes(target, Plan(1.0, 2.0, ()), WeightStore(tmp_path), config)
    assert sections().get(f"Target {target}", []) == names(passes)


def test_every_file_is_listed() -> None:
    listed = {name for each in sections().values() for name in each}
    assert listed == FILES


def test_no_pass_is_under_two_kinds() -> None:
    """A target's embeddings are listed with each target; all else has one place."""
    listed = [name for each in sections().values() for name in each]
    assert {name for name in listed if listed.count(name) > 1} == {"quantize_embeddings"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_passes_return_a_result_and_analysis_does_not(name: str) -> None:
    returned = get_type_hints(function(name))["return"]
    assert (returned is PassResult) == (name not in sections()["Analysis"])
