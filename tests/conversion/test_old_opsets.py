"""Whole models of old opsets, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.old_encoder import LAYERS, VOCAB, encoder
from support.saved_models import fingerprint, linear_model, saved

from fptq_onnx import convert
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.float16 import convert_float16
from fptq_onnx.conversion.targets import FLOAT_TARGET
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.runtime.session import open_session
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.recipes import RECIPES


def feeds(count: int = 2, rows: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        mask = np.ones((rows, 24), np.int64)
        mask[-1, 17:] = 0
        made.append({"input_ids": rng.integers(VOCAB, size=(rows, 24)), "attention_mask": mask})
    return made


def folder_of(tmp_path: Path, opset: int, *, external: bool = True) -> Path:
    folder = tmp_path / f"opset{opset}"
    folder.mkdir()
    model = ir.from_proto(encoder(opset))
    # From 13 on axes are inputs, which ONNX Runtime does not look for in files.
    smallest = 0 if opset < 13 else 256
    data = {"external_data": "m.data", "size_threshold_bytes": smallest} if external else {}
    ir.save(model, folder / "model.onnx", **data)
    return folder


def state(folder: Path) -> np.ndarray:
    session = open_session(folder / "model.onnx", threads=1)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds()])


def error(folder: Path, want: np.ndarray) -> float:
    return float(np.linalg.norm(state(folder) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_encoder_gets_what_the_new_one_gets(tmp_path: Path, opset: int) -> None:
    """The same folds, schemes and errors: attention and norms are recognized alike."""
    plans = {}
    for at in (opset, 17):
        folder = folder_of(tmp_path, at)
        before = fingerprint(folder)
        made = convert(folder, tmp_path / f"out{at}", samples=feeds(), threads=1, verify_samples=2)
        assert fingerprint(folder) == before
        plans[at] = [
            (entry.path, entry.scheme, entry.equalization, entry.fold_site)
            for entry in made.plan.linears
        ]
        assert error(tmp_path / f"out{at}", state(folder)) < 0.3
    assert plans[opset] == plans[17]
    assert sum(fold is not None for *_, fold in plans[17]) == LAYERS


JOBS = [
    *[(recipe.name, recipe.target) for recipe in RECIPES],
    *[("fptq", target) for target in ("matmulnbits", "qdq", FLOAT_TARGET)],
]


@pytest.mark.parametrize(("recipe", "target"), JOBS)
def test_every_recipe_and_target(tmp_path: Path, recipe: str, target: str) -> None:
    folder = folder_of(tmp_path, 11, external=target == "qdq")
    out = tmp_path / "out"
    if recipe == "fp16":
        report = convert_float16(folder, out, samples=Samples(feeds()), verify_samples=1, threads=1)
    else:
        config = next(item for item in RECIPES if item.name == recipe).config()
        if target == FLOAT_TARGET:
            config = Config(quantize=False)
        made = convert(
            folder, out, samples=feeds(), config=config, threads=1, verify_samples=1,
            targets=("custom",) if target == FLOAT_TARGET else (target,),
        )  # fmt: skip
        report = made.reports[target]
    said = "raised from opset 11 to 17 (checked: largest difference "
    assert any(note.startswith(said) for note in report.notes)
    assert said in (out / "report.json").read_text()
    onnx.checker.check_model(str(out / "model.onnx"), full_check=target in ("qdq", "fp16"))
    assert load_model(out, allow_quantized=True).raised_from is None
    assert error(out, state(folder)) < {FLOAT_TARGET: 1e-4, "fp16": 0.01}.get(target, 0.4)


def test_the_default_domain_by_its_other_name(tmp_path: Path) -> None:
    proto = encoder(11)
    proto.opset_import[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "model.onnx")
    loaded = load_model(tmp_path)
    assert loaded.raised_from == 11
    assert dict(loaded.model.opset_imports) == {"": 17}
    newer = linear_model(18)
    newer.graph.opset_imports["ai.onnx"] = newer.graph.opset_imports.pop("")
    assert dict(load_model(saved(tmp_path / "new", newer)).model.opset_imports) == {"": 18}


def test_a_raised_model_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no adapter knows shows in the outputs."""
    from fptq_onnx.model_io.opset import older_ops as _older_ops

    def wrong(node: ir.Node, rewriter: _older_ops.Rewriter) -> None:
        node.attributes["axis"] = ir.AttrInt64("axis", 2)

    monkeypatch.setitem(_older_ops.ADAPTERS[13], "Softmax", wrong)
    with pytest.raises(FptqError, match="was raised from opset 11 to 17, but its outputs then"):
        convert(folder_of(tmp_path, 11), tmp_path / "out", samples=feeds(), threads=1)
    assert not (tmp_path / "out").exists()


def test_a_node_that_cannot_be_raised_is_named(tmp_path: Path) -> None:
    text = (
        '<ir_version: 6, opset_import: ["" : 8]> g (float[A, 3] x) => (float[A, 3] y)'
        " { y = BatchNormalization<spatial = 0>(x, s, s, s, s) }"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "s"))
    onnx.save(proto, tmp_path / "model.onnx")
    saying = (
        r"model.onnx cannot be raised from opset 8 to 17: node 'y' \(BatchNormalization\) has "
        r"statistics for every position .*; export it again with opset 17 or newer"
    )
    with pytest.raises(FptqError, match=saying):
        load_model(tmp_path)


def test_reports_are_json(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 12)
    lines: list[str] = []
    convert(folder, tmp_path / "out", samples=feeds(), threads=1, verify_samples=0,
            config=Config(weight_method="rtn"), say=lines.append)  # fmt: skip
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    said = [line for line in lines if "raised from opset 12 to 17" in line]
    assert len(said) == 1 and said[0].removeprefix("note").strip() in notes
