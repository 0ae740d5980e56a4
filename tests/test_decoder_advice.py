"""What is said of a model that is no decoder fits what was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest
from command_line import MODEL

from fptq_onnx.cli import main
from fptq_onnx.decoder_advice import advised
from fptq_onnx.errors import FptqError

ENCODER = """<ir_version: 8, opset_import: ["" : 17]>
    encoder (float[1, 4] pixels) => (float[1, 4] hidden) { hidden = Relu(pixels) }"""


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(ENCODER), tmp_path / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [("run", "Once"), ("serve", "--port", "0"), ("bench", "--prefill", "8", "--depth", "8")],
)
def test_commands_that_write_text(
    encoder: Path, command: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], str(encoder), *command[1:]]) == 2
    line = [line for line in capfd.readouterr().err.splitlines() if "error" in line][-1]
    assert "not a causal language model: it has no input named input_ids" in line
    assert "logits as output can be run, served or measured" in line
    assert "samples" not in line


def test_only_the_advice_is_changed() -> None:
    for end in ("; give", ", or give"):
        told = FptqError(f"no{end} calibration samples as .npz files")
        assert str(advised(told, "do that")) == "no; do that"
    assert str(advised(FptqError("no; other"), "do that")) == "no; other"
