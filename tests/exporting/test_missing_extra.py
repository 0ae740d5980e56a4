"""Without the extra: one sentence, and nothing of torch in the core."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import leftovers, refused

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting.exporters import EXPORTERS, Exporter, find_exporter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hf"
    made.mkdir()
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (made / "model.safetensors").write_bytes(b"x")
    return made


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the extra is there")
def test_export_and_convert_say_what_to_install(folder: Path, tmp_path: Path) -> None:
    for name in ("export", "convert"):
        saying = f"then pip install '{Path(__file__).parents[2]}[export]'"
        refused(name, folder, "-o", tmp_path / "out", saying=saying)
    assert leftovers(tmp_path) == ["hf"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Exporter("absent", "absent", ("json", "no_such_module", "nor_this"))
    monkeypatch.setitem(EXPORTERS, "absent", absent)
    with pytest.raises(FptqError, match="needs no_such_module and nor_this, not installed"):
        find_exporter("absent")


@pytest.mark.process
def test_looking_for_exporters_imports_none() -> None:
    code = (
        "import sys, fptq_onnx.cli.main, fptq_onnx.exporting.export_model\n"
        "from fptq_onnx.exporting.exporters import EXPORTERS, find_exporter\n"
        "for name in EXPORTERS:\n"
        "    try: find_exporter(name).version()\n"
        "    except Exception: pass\n"
        "bad = {'torch', 'transformers', 'optimum', 'onnxruntime_genai'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
