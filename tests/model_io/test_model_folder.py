"""Hub caches, `onnx` folders and folders of several models, by every command that takes a model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.command_line import MODEL, RANDOM_FEW, command, refused
from support.model_layouts import REVISION, hub_cache, onnx_subfolder
from support.saved_models import saved

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert, default_output
from fptq_onnx.errors import FptqError
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.model_choice import find_model_file
from fptq_onnx.model_io.model_folder import hub_snapshot, model_name, side_file
from fptq_onnx.model_io.tokenizer_files import copy_side_files
from fptq_onnx.runtime.decoder import open_decoder

QUICK = (*RANDOM_FEW, "--recipe", "paper", "--verify-samples", "1", "-q")
TEXT = "Once upon a time there was a little girl who had a dog. They went to the park. " * 8


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "story-w4a8"
    assert command("convert", MODEL, "-o", output, *QUICK).returncode == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hub", "onnx"])
def test_from_python(kind, tmp_path):
    top = hub_cache(tmp_path) if kind == "hub" else onnx_subfolder(tmp_path)
    assert LanguageModel.open(top, threads=1).encode("Once")
    result = convert(top, tmp_path / "out", samples=Samples("random", 2, 32), verify_samples=1)
    assert result.reports["custom"].source["sha256"].keys() == {"model.onnx", "model.onnx.data"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.process
@pytest.mark.slow
def test_every_command_opens_links_and_an_onnx_folder(tmp_path):
    """Each runs to its end: the graph is found and opened, and the tokenizer that is elsewhere."""
    layout = hub_cache(tmp_path, below="onnx")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    done = command("convert", layout, "-o", out, "--calibration", text, *QUICK)
    assert done.returncode == 0, done.stderr
    assert {"tokenizer.json", "tokenizer_config.json", "genai_config.json"} <= {
        file.name for file in out.iterdir()
    }
    assert json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["filename"]
    story = command("run", out, "Once upon a time", "--max-tokens", "4")
    assert story.stdout.startswith("Once upon a time")
    original = command("run", layout, "Once upon a time", "--max-tokens", "4")
    assert original.returncode == 0, original.stderr
    assert original.stdout == command("run", MODEL, "Once upon a time", "--max-tokens", "4").stdout
    shown = command("inspect", layout, *RANDOM_FEW, "-q")
    assert "31 of 31 MatMul-like nodes are linears" in shown.stdout, shown.stderr
    few = ("--data", text, "--window", "32", "--max-windows", "2", "-q")
    found = command("eval", out, "--reference", layout, *few)
    assert "perplexity" in found.stdout, found.stderr
    timed = command(
        "bench", layout, "--prefill", "8", "--depth", "8", "--steps", "1", "--rounds", "1", "-q"
    )
    assert timed.returncode == 0, timed.stderr


@pytest.mark.process
@pytest.mark.slow
def test_compare_opens_a_hub_cache(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = command(
        "compare", hub_cache(tmp_path, below="onnx"), "--data", text, "--recipes", "paper,fp16",
        "--calibration", "random", "--max-samples", "2", "--max-windows", "2", "--window", "32",
        "--prefill", "4", "--decode", "1", "--rounds", "1", "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fp16" in done.stdout and "stock-32" in done.stdout


@pytest.mark.parametrize("kind", ["genai", "edge"])
def test_package_takes_a_converted_model_from_a_hub_cache(converted, tmp_path, kind):
    top = hub_cache(tmp_path, converted)
    output = tmp_path / ("p.tar.gz" if kind == "edge" else "p")
    done = command("package", top, "--for", kind, "-o", output, "--no-fallback")
    assert done.returncode == 0, done.stderr
    assert output.exists()
    if kind == "genai":  # files, not the links of the cache
        assert not any(path.is_symlink() for path in output.rglob("*"))
        open_decoder(output / "model.onnx", threads=1)


def test_a_converted_model_in_a_hub_cache_runs(converted, tmp_path):
    """Its graph needs our library, and its weights are behind links."""
    top = hub_cache(tmp_path, converted)
    for path in (top, top / "snapshots" / REVISION, find_model_file(top)):
        model = LanguageModel.open(path, threads=1)
        assert model.encode("Once")
        assert open_decoder(path, threads=1).io.has_cache


def test_serve_names_a_model_of_a_hub_cache_as_the_hub_does(tmp_path):
    pytest.importorskip("starlette")
    from fptq_onnx.serving.open_service import open_service
    from fptq_onnx.serving.settings import ServerSettings

    top = hub_cache(tmp_path)
    assert open_service(top, ServerSettings(), threads=1).name == "owner/story"
    assert model_name(onnx_subfolder(tmp_path) / "onnx" / "model.onnx") == "story"
    assert model_name(MODEL) == MODEL.name


def test_which_snapshot_is_meant(tmp_path):
    top = hub_cache(tmp_path)
    snapshot = top / "snapshots" / REVISION
    assert hub_snapshot(top) == snapshot
    assert hub_snapshot(top / "snapshots") == snapshot
    assert hub_snapshot(snapshot) == snapshot
    assert hub_snapshot(MODEL) == MODEL
    (top / "refs" / "main").unlink()
    assert hub_snapshot(top) == snapshot  # the only one
    (top / "snapshots" / "other").mkdir()
    with pytest.raises(FptqError, match="2 snapshots and no refs/main says which: give one of"):
        hub_snapshot(top)
    (top / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(FptqError, match="2 snapshots"):
        hub_snapshot(top)
    (top / "refs" / "main").write_text(f"{REVISION}\n")
    assert hub_snapshot(top) == snapshot


def test_nothing_is_written_into_a_hub_cache(tmp_path, monkeypatch):
    top = hub_cache(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (top, top / "snapshots" / REVISION, find_model_file(top)):
        assert default_output(path) == tmp_path / "story-w4a8"


def test_a_snapshot_whose_blob_is_missing(tmp_path):
    top = hub_cache(tmp_path)
    file = find_model_file(top)
    data = file.parent / "model.onnx.data"
    data.resolve().unlink()
    with pytest.raises(FptqError, match=r"model\.onnx\.data is a link to .*, which is missing: "):
        load_model(top)
    file.resolve().unlink()
    with pytest.raises(FptqError, match=r"model\.onnx is a link to .*, which is missing: download"):
        load_model(top)


def test_files_above_are_those_of_an_onnx_folder_alone(tmp_path):
    folder = onnx_subfolder(tmp_path)
    assert side_file(folder / "onnx", "tokenizer.json") == folder / "tokenizer.json"
    deep = folder / "onnx" / "fp16"
    deep.mkdir()
    assert side_file(deep, "tokenizer.json") == folder / "tokenizer.json"
    (folder / "onnx" / "tokenizer.json").write_text("{}")  # nearer
    assert side_file(deep, "tokenizer.json") == folder / "onnx" / "tokenizer.json"
    other = folder / "models"
    other.mkdir()
    assert side_file(other, "config.json") == other / "config.json"
    assert side_file(folder / "onnx", "report.json") == folder / "onnx" / "report.json"


def test_the_folder_onnx_as_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(onnx_subfolder(tmp_path) / "onnx")
    for path in (Path(), Path("model.onnx")):
        assert LanguageModel.open(path, threads=1).special.bos == 1


@pytest.mark.slow
def test_a_folder_with_torch_weights_and_graphs_is_not_exported(tmp_path):
    folder = onnx_subfolder(tmp_path)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"x")
    done = command("convert", folder, "--dry-run", "--calibration", "random", *RANDOM_FEW, "-q")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def several(tmp_path) -> Path:
    folder = tmp_path / "m" / "onnx"
    saved(folder)
    for name in ("decoder_model_merged", "encoder_model", "model_q4"):
        shutil.copyfile(folder / "model.onnx", folder / f"{name}.onnx")
    return folder


def test_several_files_are_named_with_their_sizes(several):
    assert find_model_file(several.parent) == several / "model.onnx"
    (several / "model.onnx").rename(several / "model_fp16.onnx")
    (several / "model_fp16.onnx_data").write_bytes(bytes(5_000_000))
    with pytest.raises(FptqError) as caught:
        find_model_file(several.parent)
    said = str(caught.value)
    for part in ("4 .onnx files and no model.onnx", "encoder_model.onnx (", "model_fp16.onnx (5.0",
                 "decoder_model_merged.onnx", "--file and its name"):  # fmt: skip
        assert part in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["model_q4", "model_q4.onnx", "onnx/model_q4.onnx"])
def test_file_chooses(several, name):
    assert find_model_file(several.parent, name).samefile(several / "model_q4.onnx")


def test_file_that_is_not_there(several):
    with pytest.raises(FptqError, match=r"has no file x\.onnx: it holds onnx/decoder_model_merged"):
        find_model_file(several.parent, "x.onnx")
    with pytest.raises(FptqError, match="--file x is for a folder"):
        find_model_file(several / "model.onnx", "x")
    assert find_model_file(several / "model.onnx", "model.onnx") == several / "model.onnx"


def test_models_in_deeper_folders_are_named(several):
    several.rename(several.parent / "cpu")
    with pytest.raises(FptqError, match=r"folders in it do: cpu/decoder_model_merged\.onnx \("):
        find_model_file(several.parent)


COMMANDS = ("convert", "inspect", "run", "serve", "eval", "compare", "bench", "package")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_option_file(several, name):
    if name == "serve" and "uvicorn" not in sys.modules:
        pytest.importorskip("uvicorn")
    more = {
        "run": ["x"], "eval": ["--data", __file__], "compare": ["--data", __file__],
        "package": ["--for", "edge"], "serve": ["--port", "0"],
    }  # fmt: skip
    refused(name, several.parent, "--file", "nothing", *more.get(name, ()), saying="has no file")


def test_convert_of_a_chosen_file(several):
    done = command(
        "convert", several.parent, "--file", "decoder_model_merged", "--calibration", "random",
        *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((several.parent.parent / "m-w4a8" / "report.json").read_text())
    assert report["source"]["file"] == "decoder_model_merged.onnx"


def test_copied_side_files_are_complete(tmp_path):
    folder = onnx_subfolder(tmp_path)
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": "\xc3\xa4"}\r\n')
    out = tmp_path / "out"
    out.mkdir()
    copied = copy_side_files(folder / "onnx", out, "model.onnx")
    assert set(copied) == {
        "config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert (out / "config.json").read_bytes() == b'{"a": "\xc3\xa4"}\r\n'
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_name_of_the_hub_is_told_from_a_misspelt_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FptqError, match="fptq-onnx export owner/name"):
        find_model_file(Path("owner/name"))
    (tmp_path / "models").mkdir()
    with pytest.raises(FptqError) as caught:
        find_model_file(Path("models/misspelt"))
    assert "export" not in str(caught.value)
