"""`fptq-onnx package` and bad input: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import MODEL, command, leftovers, refused

KINDS = ("genai", "triton", "edge")


def test_what_must_be_given(tmp_path: Path, custom: Path, edge: Path) -> None:
    refused("package", saying="give MODEL and --for genai, triton, edge; or --check PACKAGE")
    refused("package", custom, saying="give MODEL and --for")
    refused("package", custom, "--for", "docker", saying="unknown kind of package 'docker'")
    refused("package", custom, "--for", "edge", "--target", "win", saying="unknown target 'win'")
    refused("package", custom, "--check", edge, saying="--check takes a package and nothing else")
    refused(
        "package",
        custom,
        "--for",
        "edge",
        "--served-at",
        "/x",
        saying="--served-at is for --for tri",
    )
    refused("package", "--check", tmp_path / "absent", saying="no package at")
    refused("package", "--check", MODEL, saying="it has no SHA256SUMS")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_converted_model(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.zip"
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, saying in (
        (tmp_path / "absent", "no folder"),
        (MODEL / "model.onnx", "no folder"),
        (MODEL, "was not written by `fptq-onnx convert` (no report.json): convert first"),
        (empty, "was not written by `fptq-onnx convert`"),
    ):
        refused("package", given, "--for", kind, "-o", out, saying=saying)
    assert leftovers(tmp_path) == ["empty"]


def test_a_folder_of_other_targets(tmp_path: Path, both: Path) -> None:
    shutil.copytree(both / "custom", tmp_path / "m" / "qdq")
    saying = "holds conversions to qdq: give one of these"
    refused("package", tmp_path / "m", "--for", "edge", "-o", tmp_path / "a.zip", saying=saying)


@pytest.fixture
def copy(custom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(custom, tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_folders(copy: Path, tmp_path: Path, kind: str) -> None:
    data = copy / "model.onnx.data"
    content = data.read_bytes()
    arguments = ("package", copy, "--for", kind, "-o", tmp_path / "out.zip")
    data.write_bytes(content[: 1 << 20])
    refused(*arguments, saying="truncated")
    data.unlink()
    refused(*arguments, saying="missing")
    data.write_bytes(content)
    (copy / "report.json").write_text("{")
    refused(*arguments, saying="report.json")
    (copy / "report.json").write_text(json.dumps({"target": "custom"}))
    (copy / "model.onnx").write_text("hello")
    refused(*arguments, saying="is not")
    assert leftovers(tmp_path) == ["model"]


def test_a_library_that_is_not_there(custom: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    for kind in KINDS:
        refused(
            "package", custom, "--for", kind, "-o", out, "--library", tmp_path / "no.so",
            saying="no library at",
        )  # fmt: skip
    assert leftovers(tmp_path) == []


def test_outputs_of_others_stay(copy: Path, edge: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.tar.gz"
    mine.write_text("my own file")
    package = ("package", copy, "--for", "edge", "-o")
    refused(*package, mine, saying="exists: give --overwrite")
    refused(*package, mine, "--overwrite", saying="is not a .tar.gz or .zip")
    assert mine.read_text() == "my own file"
    refused(*package, tmp_path / "a.rar", saying="must end in .tar.gz or .tgz or .zip")
    refused(*package, copy / "a.zip", saying="is inside the input")
    refused(*package, tmp_path / "no" / "a.zip", saying="make it first")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_text("x")
    for kind in ("genai", "triton"):
        refused("package", copy, "--for", kind, "-o", folder, saying="exists: give --overwrite")
        refused("package", copy, "--for", kind, "-o", folder, "--overwrite", saying="manifest.json")
        refused("package", copy, "--for", kind, "-o", copy / "in", saying="inside the input")
    assert leftovers(folder) == ["x"]
    assert "in" not in leftovers(copy)
    earlier = Path(shutil.copy(edge, tmp_path / "earlier.tar.gz"))
    done = command(*package, earlier, "--overwrite")
    assert done.returncode == 0, done.stderr


def test_names_beside_the_model(copy: Path, tmp_path: Path) -> None:
    """Without -o; a name of odd characters becomes one that files and servers take."""
    odd = copy.rename(tmp_path / "my model (1)")
    for kind, name in (("genai", "my-model--1--genai"), ("triton", "my-model--1--triton")):
        done = command("package", odd, "--for", kind, "--no-fallback")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "manifest.json").is_file()
        assert f"output       {tmp_path / name} ({kind})" in done.stdout
    done = command("package", odd, "--for", "edge", "--no-fallback")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("my-model--1--linux-*.tar.gz")
    checked = command("package", "--check", archive)
    assert "package      my-model--1- for edge, linux-" in checked.stdout
    digest = next(x.split()[1] for x in done.stdout.splitlines() if x.startswith("sha256"))
    assert f"sha256       {digest}" in checked.stdout


def test_encoders_have_no_tokens_to_write(tmp_path: Path) -> None:
    """A model that is no language model: Triton takes it, the others say why not."""
    import onnx
    from support.bigrams import bigram_text, parsed

    folder = tmp_path / "encoder"
    folder.mkdir()
    text = (
        bigram_text([[1.0, 2.0], [3.0, 4.0]]).replace("logits", "hidden").replace("input_ids", "x")
    )
    onnx.save(parsed(text), folder / "model.onnx")
    (folder / "report.json").write_text(json.dumps({"target": "matmulnbits"}))
    for kind, output in (("edge", tmp_path / "a.zip"), ("genai", tmp_path / "g")):
        saying = "not a causal language model"
        refused("package", folder, "--for", kind, "-o", output, saying=saying)
    done = command("package", folder, "--for", "triton", "-o", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path) == ["encoder", "t"]


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_disk_full(custom: Path, tmp_path: Path, kind: str) -> None:
    limited = "import resource, sys; from fptq_onnx.cli.main import main;" + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000_000, 1000_000));"
        f"sys.exit(main(['package', {str(custom)!r}, '--for', {kind!r}, '-o',"
        f" {str(tmp_path / 'out.zip')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "exceeds the size allowed" in done.stderr and "Traceback" not in done.stderr
    assert leftovers(tmp_path) == []


def test_the_input_stays_as_it_is(copy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for kind in KINDS:
        assert (
            command("package", copy, "--for", kind, "-o", tmp_path / f"{kind}.zip").returncode == 0
        )
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
