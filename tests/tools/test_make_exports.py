"""The script that makes small exports: what is to be made, and what could not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_exports

    return make_exports


def test_jobs_by_model_and_by_export(script):
    names = [name for name, *_ in script.jobs([])]
    assert len(set(names)) == len(names) and {"bert-optimum", "falcon-new-dynamo"} <= set(names)
    assert not [name for name in names if name.startswith("bert") and "optimum" not in name]
    assert [job[0] for job in script.jobs(["qwen3"])] == [
        "qwen3-genai", "qwen3-optimum", "qwen3-dynamo",
    ]  # fmt: skip
    assert script.jobs(["llama-dynamo-23"]) == [("llama-dynamo-23", "llama", "dynamo", 23)]


def test_what_fails_is_recorded_and_what_is_there_stays(script, monkeypatch, tmp_path, capsys):
    made = []

    def export(source, output, *, exporter, verbose):
        made.append(output.name)
        if exporter == "genai":
            raise FptqError("not known: try another")
        output.mkdir()

    monkeypatch.setattr(script, "export_model", export)
    monkeypatch.setattr(script, "save_small_model", lambda model, folder: folder.mkdir())
    (tmp_path / "gpt2-dynamo").mkdir()
    assert script.main([str(tmp_path), "--only", "gpt2"]) == 0
    assert made == ["gpt2-genai", "gpt2-optimum"]
    record = tmp_path / "not-exported.json"
    assert json.loads(record.read_text()) == {"gpt2-genai": "not known: try another"}
    assert "gpt2-genai: not known" in capsys.readouterr().out
    # What failed is tried again, and is no failure any more once it is there.
    monkeypatch.setattr(script, "export_model", lambda source, output, **_: output.mkdir())
    assert script.main([str(tmp_path), "--only", "gpt2"]) == 0
    assert json.loads(record.read_text()) == {} and (tmp_path / "gpt2-genai").is_dir()
