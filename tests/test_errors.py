"""What is said of a model that is no decoder fits what was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest
from support.command_line import MODEL

from fptq_onnx.cli.main import main
from fptq_onnx.errors import FOR_CONVERSION, NoDecoderError
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.runtime.kv_cache import pair_cache

ENCODER = """<ir_version: 8, opset_import: ["" : 17]>
    encoder (float[1, 4] pixels) => (float[1, 4] hidden) { hidden = Relu(pixels) }"""


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(ENCODER), tmp_path / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


@pytest.mark.process
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
    told = NoDecoderError(f"wrong; {FOR_CONVERSION}")
    assert str(told) == f"wrong; {FOR_CONVERSION}; {FOR_CONVERSION}"
    assert str(told.advised("do that")) == f"wrong; {FOR_CONVERSION}; do that"
    assert str(told.advised("do that").advised("go")) == f"wrong; {FOR_CONVERSION}; go"


def test_a_cache_that_goes_nowhere() -> None:
    """What is wrong is told with each advice."""
    past = [TensorSpec(f"past_{n}", "float32", (1, 2, None, 4)) for n in (0, 1)]
    with pytest.raises(NoDecoderError, match=r"the next step's past_0.*; give calibration") as told:
        pair_cache(past, [], {}, {})
    assert str(told.value.advised("go")).endswith("goes with present.N.key in an export; go")
