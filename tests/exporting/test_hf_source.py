"""What counts as a Hugging Face model, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import MODEL, leftovers, refused

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting.hf_source import check_hf_source, is_hf_folder

CONFIG = '{"architectures": ["LlamaForCausalLM"]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hf"
    made.mkdir()
    (made / "config.json").write_text(CONFIG)
    (made / "model-00001-of-00002.safetensors").write_bytes(b"x")
    return made


def test_a_folder(folder: Path) -> None:
    assert is_hf_folder(folder) and check_hf_source(str(folder)) == folder


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B"])
def test_a_name_on_the_hub(name: str) -> None:
    assert check_hf_source(name) is None
    assert not is_hf_folder(Path(name))


@pytest.mark.parametrize("name", ["a/b/c", "./gone", "../x", "/none/such", "a b"])
def test_what_is_neither(name: str) -> None:
    with pytest.raises(FptqError, match="no such folder"):
        check_hf_source(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_at_all(name: str, tmp_path: Path) -> None:
    refused("export", name, "-o", tmp_path / "out", saying="the model's name is empty: give")
    assert leftovers(tmp_path) == []


def test_a_folder_that_lacks_something(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(FptqError, match="names no architecture"):
        check_hf_source(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(FptqError, match="cannot read"):
        check_hf_source(str(folder))
    (folder / "config.json").unlink()
    assert not is_hf_folder(folder)
    with pytest.raises(FptqError, match=r"has no config\.json"):
        check_hf_source(str(folder))
    (folder / "config.json").write_text(CONFIG)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert not is_hf_folder(folder)
    with pytest.raises(FptqError, match="holds no weights"):
        check_hf_source(str(folder))


def test_a_model_that_is_onnx_already(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")
    assert not is_hf_folder(folder)
    with pytest.raises(FptqError, match="give it to `fptq-onnx convert`"):
        check_hf_source(str(folder))


def test_refusals_of_the_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("export", MODEL, "-o", out, saying="holds an ONNX model already")
    refused("export", MODEL / "model.onnx", "-o", out, saying="is a file")
    refused("export", folder, "-o", out, "--exporter", "onnx", saying="use one of genai, optimum")
    refused("export", folder, "-o", out, "--threads", "-1", saying="--threads must be")
    assert leftovers(tmp_path) == ["hf"]
