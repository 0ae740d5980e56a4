"""Graph optimization of whole models: the same logits, however they are fed; nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.any_feeds import HandFed, Logits
from support.command_line import MODEL, RANDOM_FEW, command

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion import graph_optimization as cleaning
from fptq_onnx.conversion import graph_optimization_check as checking
from fptq_onnx.conversion.graph_optimization import ALL, GraphOptimization, optimize_graph
from fptq_onnx.conversion.graph_optimization_check import (
    CheckedOptimization,
    check_graph_optimization,
)
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.passes import Declined, Pass, PassResult
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.scheme.config import PAPER

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
EXPORTS = sorted(path.name for path in (SHARED / "onnx").glob("*") if path.is_dir())
shared = pytest.mark.skipif(not EXPORTS, reason="no shared exports here")
DYNAMO, OPTIMUM = "tinystories-7m-dynamo-past", "tinystories-7m-outliers-optimum"
# Per layer: transposes, guards, products; then norms. What is not here has nothing to optimize.
FOUND = {
    "gemma2-optimum": (0, 2, 4, 0),
    "gpt2-optimum": (0, 2, 0, 0),
    "llama-dynamo-past": (2, 2, 4, 5),
    "llama-optimum": (0, 2, 4, 0),
    "llama-optimum-ext": (0, 2, 4, 0),
    "llama-tied-optimum": (0, 2, 4, 0),
    "mistral-optimum": (0, 2, 4, 0),
    "qwen3-dynamo": (2, 2, 4, 9),
    DYNAMO: (6, 6, 12, 13),
    OPTIMUM: (0, 6, 12, 0),
}
# Sums in another order, through all layers, in float32; relative to the largest logit.
TOLERANCE = 1e-5
FEW = Samples("random", max_samples=2, max_seq_len=32)
FLOAT = replace(PAPER, v0=1e9, v1=1e9, quantize=False)  # nothing is folded


def loaded_export(name: str) -> LoadedModel:
    loaded = load_model(SHARED / "onnx" / name)
    normalize(loaded.model)
    return loaded


def checked(loaded: LoadedModel) -> CheckedOptimization:
    return check_graph_optimization(
        loaded, lambda: Samples("random", 2, 32).open(loaded), threads=1
    )


def check_same(found: Logits, expected: Logits) -> None:
    assert found.shape == expected.shape and np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))


@shared
@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_found(name: str) -> None:
    done = checked(loaded_export(name)).done
    # A pass at the end of the list that finds nothing here needs no number.
    numbers = FOUND.get(name, ())
    assert len(numbers) <= len(ALL)
    expected = {key: n for key, n in zip(ALL, numbers, strict=False) if n}
    assert done.counts == expected and not done.declined


@pytest.mark.slow
@shared
@pytest.mark.parametrize("name", sorted({*EXPORTS} & {*FOUND}))
def test_the_same_logits_however_it_is_fed(
    name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    models = []
    for tidy in (False, True):
        folder = tmp_path / str(tidy)
        config = replace(FLOAT, graph_optimization=tidy)
        convert(SHARED / "onnx" / name, folder, samples=FEW, config=config, verify_samples=0)
        models.append(HandFed(folder))
    assert (tmp_path / "True" / "plan.json").read_text() == (
        tmp_path / "False" / "plan.json"
    ).read_text()
    before, after = models
    ids = rng.integers(3, before.io.vocab_size or 512, (3, 24)).astype(np.int64)
    check_same(after.whole(ids), before.whole(ids))
    if before.io.attention_mask is not None:
        rows = [ids[0], ids[1][:17], ids[2][:9]]
        for side in ("left", "right"):
            pairs = zip(after.padded(rows, side), before.padded(rows, side), strict=True)
            for found, expected in pairs:
                check_same(found, expected)
    if before.io.has_cache:
        check_same(after.by_steps(ids[:1], 20), before.by_steps(ids[:1], 20))
        check_same(after.by_steps(ids, 1), before.by_steps(ids, 1))


@pytest.mark.slow
@shared
@pytest.mark.parametrize("name", sorted({*EXPORTS} & {DYNAMO, OPTIMUM}))
def test_every_target_gets_it_and_keeps_its_interface(name: str, tmp_path: Path) -> None:
    source = SHARED / "onnx" / name
    targets = ("custom", "matmulnbits", "qdq")
    convert(
        source, tmp_path / "out", targets=targets, samples=FEW, verify_samples=2,
        config=replace(PAPER, embedding_bits=8),
    )  # fmt: skip
    original = ir.load(source / "model.onnx").graph
    for target in targets:
        file = tmp_path / "out" / target / "model.onnx"
        onnx.checker.check_model(str(file))
        graph = ir.load(file).graph
        for old, new in (
            (original.inputs, graph.inputs),
            (original.outputs, graph.outputs),
        ):
            assert [(v.name, v.dtype, v.shape) for v in old] == [
                (v.name, v.dtype, v.shape) for v in new
            ]
        expands = [sum(node.op_type == "Expand" for node in g) for g in (original, graph)]
        assert expands[0] - expands[1] == 12
        assert sum(node.op_type == "IsNaN" for node in graph) == 6
        if target == "qdq":
            assert {node.domain for node in graph} <= {"", "ai.onnx"}


def wrong(model: ir.Model) -> PassResult:
    """A rewrite that changes a softmax's axis: seen with more than one row or a mask."""
    for node in model.graph:
        if node.op_type == "Softmax":
            node.attributes["axis"] = ir.AttrInt64("axis", -2)
    return PassResult(1, (Declined("x", "left as it is: a reason"),))


def disconnected(model: ir.Model) -> PassResult:
    """A rewrite that takes a node out and leaves its readers."""
    node = next(node for node in model.graph if node.op_type == "Softmax")
    model.graph.remove(node)
    return PassResult(1)


def failing(model: ir.Model) -> PassResult:
    raise IndexError("no such input")


def broken(model: ir.Model) -> PassResult:
    for node in model.graph:
        if node.op_type == "Softmax":
            node.attributes["axis"] = ir.AttrInt64("axis", 9)
    return PassResult(1)


@pytest.mark.slow
@shared
@pytest.mark.parametrize(
    ("planted", "sign"),
    [
        (wrong, "differ by"),
        (broken, "differ by inf"),
        (disconnected, "the pass disconnected broke the graph: "),
        (failing, "the pass failing failed: no such input"),
    ],
)
def test_a_wrong_rewrite_is_undone_and_told(
    planted: Pass,
    sign: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name = planted.__name__
    passes = (planted, *cleaning.GRAPH_OPTIMIZATION)
    monkeypatch.setattr(cleaning, "GRAPH_OPTIMIZATION", passes)
    monkeypatch.setattr(checking, "ALL", (name, *ALL))
    said: list[str] = []
    result = convert(
        SHARED / "onnx" / OPTIMUM, tmp_path / "out", samples=FEW, config=FLOAT,
        verify_samples=2, say=said.append,
    )  # fmt: skip
    (report,) = result.reports.values()
    (note,) = [text for text in report.notes if "undone" in text]
    assert f"the graph optimization {name} was undone" in note and sign in note
    assert any(note in line for line in said)
    assert any("6 guards after the product, 12 products" in line for line in said)
    assert report.verification["max_rel_diff"] < TOLERANCE


@shared
def test_an_error_that_only_padding_shows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard taken away: other numbers where a row attends to nothing, and only there."""

    def hoist_nan_guard(model: ir.Model) -> PassResult:
        count = 0
        for node in list(model.graph):
            if node.op_type == "Where" and node.inputs[0].producer().op_type == "IsNaN":
                node.outputs[0].replace_all_uses_with(node.inputs[2])
                count += 1
        return PassResult(count)

    monkeypatch.setattr(cleaning, "GRAPH_OPTIMIZATION", (hoist_nan_guard,))
    found = checked(loaded_export(OPTIMUM))
    assert found.names == () and "undone: outputs differ by inf" in found.undone[0]
    monkeypatch.setattr(checking, "_PADDED", 0)
    assert checked(loaded_export(OPTIMUM)).names == ALL


@shared
def test_a_model_that_cannot_be_compared_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_export(OPTIMUM)
    source = Samples("random", 2, 32).open(loaded)

    def refuse(*_: object, **__: object) -> None:
        raise checking.FptqError("ONNX Runtime cannot run the model: no")

    monkeypatch.setattr(checking, "open_session_in_memory", refuse)
    found = check_graph_optimization(loaded, lambda: source)
    assert found.names == () and not found.lines
    assert found.notes == (
        "graph optimization was left out, since nothing can be compared: ONNX Runtime cannot run "
        "the model: no",
    )


def test_reasons_are_told_once() -> None:
    declined = tuple(
        Declined(what, f"{left}: because")
        for what, left in (("a", "left"), ("b", "left"), ("c", "left alone"))
    )
    found = CheckedOptimization((), GraphOptimization({}, declined), 0.0, ("undone",))
    assert found.notes == ("a: left: because (and 1 more)", "c: left alone: because", "undone")


def test_a_model_without_anything_to_optimize_is_not_run() -> None:
    loaded = load_model(MODEL)
    normalize(loaded.model)
    found = check_graph_optimization(loaded, lambda: pytest.fail("no samples are needed"))
    assert not found.lines and not found.notes and not optimize_graph(loaded.model).counts


@pytest.mark.slow
@shared
def test_the_command_says_what_it_did_and_can_leave_it(tmp_path: Path) -> None:
    source = SHARED / "onnx" / DYNAMO
    for arguments, guards in (((), 6), (("--no-graph-optimization",), 6)):
        output = tmp_path / str(len(arguments))
        done = command(
            "convert", source, "-o", output, "--recipe", "paper", *RANDOM_FEW, *arguments
        )
        assert done.returncode == 0, done.stderr
        assert ("12 products of grouped heads" in done.stdout) == (not arguments)
        nodes = [node.op_type for node in ir.load(output / "model.onnx").graph]
        assert nodes.count("IsNaN") == guards
        assert ("Reciprocal" in nodes) == bool(arguments)
        options = json.loads((output / "report.json").read_text())["options"]
        assert options["graph_optimization"] == (not arguments)
