"""What several targets have to say in common is said once; each report keeps all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.saved_models import saved
from support.tiny_graphs import build, weight

from fptq_onnx.conversion.options import notes_once
from fptq_onnx.conversion.pipeline import convert


def test_only_notes_are_remembered() -> None:
    said: list[str] = []
    say = notes_once(said.append)
    for line in ("note  a", "check  x", "note  b", "note  a", "check  x", "notes are a word"):
        say(line)
    assert said == ["note  a", "check  x", "note  b", "check  x", "notes are a word"]


def test_a_note_of_three_targets(rng: np.random.Generator, tmp_path: Path) -> None:
    """The embedding is an output of the model as well, which keeps its floats."""
    model = build(
        "g (int64[B, S] input_ids) => (float[B, S, 1024] logits, float[1024, 64] t) {"
        " x = Gather(E, input_ids) t = Identity(E) logits = MatMul(x, W) }",
        {"E": weight(rng, 1024, 64), "W": weight(rng, 64, 1024)},
    )
    said: list[str] = []
    done = convert(
        saved(tmp_path / "model", model),
        tmp_path / "out",
        targets=("custom", "matmulnbits", "qdq"),
        say=said.append,
    )
    notes = [line for line in said if line.startswith("note")]
    assert len(notes) == len(set(notes))
    assert sum("the embedding E keeps its floats" in note for note in notes) == 1
    for report in done.reports.values():
        assert any("the embedding E keeps its floats" in note for note in report.notes)
