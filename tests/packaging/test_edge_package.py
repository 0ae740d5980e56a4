"""An edge package on a clean directory: its own commands, its runner, and its refusals."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support.bigrams import bigram_text, parsed
from support.command_line import command
from support.edge_tools import (
    compile_runner,
    fptq_run,
    members,
    opened,
    smoke_test,
)

from fptq_onnx.generation.greedy import generate
from fptq_onnx.model_io.tensor_spec import session_inputs, session_outputs
from fptq_onnx.packaging.decoder_text import decoder_text
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.runtime.decoder_io import find_io

pytestmark = pytest.mark.process

PROMPT = [1, 432, 445, 261, 406]
NEW = 60


def ours(folder: Path, prompt: list[int] = PROMPT, new: int = NEW) -> list[int]:
    return list(generate(open_decoder(folder, threads=1), prompt, new, eos=[2]))


def test_its_own_test_passes(package: Path) -> None:
    done = smoke_test(package)
    assert done.returncode == 0, done.stderr
    assert "writes the expected tokens" in done.stdout
    assert "portable     writes 8 tokens" in done.stdout
    assert done.stdout.endswith("PASSED\n")
    assert not (package / "build").exists()


@pytest.mark.parametrize(
    ("name", "saying"),
    [("model/shared.onnx.data", "files were changed"), ("model/decoder.txt", "files were changed")],
)
def test_its_own_test_finds_a_changed_file(
    edge: Path, tmp_path: Path, name: str, saying: str
) -> None:
    spoiled = opened(edge, tmp_path)
    data = bytearray((spoiled / name).read_bytes())
    data[len(data) // 2] ^= 1
    (spoiled / name).write_bytes(data)
    done = smoke_test(spoiled)
    assert done.returncode == 1
    assert saying in done.stderr
    checked = command("package", "--check", spoiled)
    assert checked.returncode == 2
    assert f"{name} was changed" in checked.stderr


def test_its_own_test_finds_other_tokens(edge: Path, tmp_path: Path) -> None:
    other = opened(edge, tmp_path)
    prompt, tokens = (other / "model" / "smoke_tokens.txt").read_text().splitlines()
    wrong = tokens.replace(tokens.split()[-1], "7")
    (other / "model" / "smoke_tokens.txt").write_text(f"{prompt}\n{wrong}\n")
    sums = subprocess.run(
        "sha256sum $(cut -c67- SHA256SUMS) > sums && mv sums SHA256SUMS",
        shell=True, cwd=other, check=True,
    )  # fmt: skip
    assert sums.returncode == 0
    done = smoke_test(other)
    assert done.returncode == 1
    assert "expected" in done.stderr


def test_the_runner_writes_our_tokens(package: Path, runner: Path, custom: Path) -> None:
    tokens, told = fptq_run(runner, package / "model", "--tokens", NEW, *PROMPT)
    assert tokens == ours(custom)
    assert len(tokens) > 20
    assert "tokens/s" in told


def test_the_portable_graph_writes_the_tokens_of_matmulnbits(
    package: Path, runner: Path, both: Path
) -> None:
    tokens, _ = fptq_run(runner, package / "model", "--portable", "--tokens", NEW, *PROMPT)
    assert tokens == ours(both / "matmulnbits")


def test_a_long_prompt_goes_in_pieces(package: Path, runner: Path, custom: Path) -> None:
    prompt = (PROMPT * 40)[:190]
    tokens, _ = fptq_run(runner, package / "model", "--tokens", 10, "--ignore-end", *prompt)
    assert tokens == list(generate(open_decoder(custom, threads=1), prompt, 10))


def test_the_context_ends_the_text(package: Path, runner: Path) -> None:
    prompt = (PROMPT * 60)[:250]
    tokens, _ = fptq_run(runner, package / "model", "--tokens", 99, "--ignore-end", *prompt)
    assert len(tokens) == 6
    _, told = fptq_run(runner, package / "model", *(PROMPT * 60)[:256], code=2)
    assert "fills the model's context" in told


def test_a_cache_that_is_not_shared(edge: Path, runner: Path, custom: Path, tmp_path: Path) -> None:
    model = opened(edge, tmp_path) / "model"
    lines = (model / "decoder.txt").read_text().splitlines(keepends=True)
    assert "shared_cache\n" in lines
    (model / "decoder.txt").write_text("".join(x for x in lines if x != "shared_cache\n"))
    assert fptq_run(runner, model, "--tokens", NEW, *PROMPT)[0] == ours(custom)


def test_without_the_library_the_portable_graph_runs(
    edge: Path, runner: Path, both: Path, tmp_path: Path
) -> None:
    package = opened(edge, tmp_path)
    shutil.rmtree(package / "lib")
    tokens, told = fptq_run(runner, package / "model", "--tokens", NEW, *PROMPT)
    assert "going on with the portable graph" in told
    assert tokens == ours(both / "matmulnbits")


def test_a_library_that_does_not_load_fails_the_smoke_test(edge: Path, tmp_path: Path) -> None:
    package = opened(edge, tmp_path)
    (library,) = (package / "lib").iterdir()
    library.write_bytes(b"of another machine")
    sums = package / "SHA256SUMS"
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    lines = [
        f"{digest}  {line.split('  ')[1]}" if line.endswith(library.name) else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")
    done = smoke_test(package)
    assert done.returncode == 1 and "PASSED" not in done.stdout
    assert "does not run here" in done.stderr


def test_without_a_fallback(custom: Path, runner: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    done = command("package", custom, "--for", "edge", "--no-fallback", "-o", archive)
    assert done.returncode == 0, done.stderr
    package = opened(archive, tmp_path / "opened")
    names = {path.name for path in (package / "model").iterdir()}
    assert "model.onnx.data" in names
    assert not {"portable.onnx", "portable.onnx.data", "shared.onnx.data"} & names
    assert "portable" not in (package / "README.md").read_text().split("## Run")[0]
    assert smoke_test(package).returncode == 0
    assert fptq_run(runner, package / "model", "--tokens", NEW, *PROMPT)[0] == ours(custom)
    _, told = fptq_run(runner, package / "model", "--portable", *PROMPT, code=2)
    assert "has no portable graph" in told
    shutil.rmtree(package / "lib")
    _, told = fptq_run(runner, package / "model", *PROMPT, code=2)
    assert "libfptq_ort_ops.so" in told


def test_a_model_of_stock_ops(both: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    done = command("package", both / "matmulnbits", "--for", "edge", "-o", archive)
    assert done.returncode == 0, done.stderr
    assert "it needs no library, and no fallback" in done.stdout
    package = opened(archive, tmp_path / "opened")
    assert not (package / "lib").exists()
    assert smoke_test(package).returncode == 0


def test_cmake_builds_the_runner(package: Path, custom: Path, tmp_path: Path) -> None:
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("needs cmake")
    for arguments in (("-S", package, "-B", tmp_path), ("--build", tmp_path)):
        subprocess.run([cmake, *arguments], check=True, capture_output=True)
    built = tmp_path / "fptq_run"
    assert fptq_run(built, package / "model", "--tokens", NEW, *PROMPT)[0] == ours(custom)


def test_the_official_header_agrees(package: Path, runner: Path, tmp_path: Path) -> None:
    """Slots are static_asserts; set ORT_INCLUDE_DIR to the folder of onnxruntime_c_api.h."""
    include = os.environ.get("ORT_INCLUDE_DIR")
    if not include:
        pytest.skip("no official header here: set ORT_INCLUDE_DIR")
    flags = ("-DFPTQ_OFFICIAL_HEADER", "-isystem", include)
    official = compile_runner(package, tmp_path, *flags)
    tokens, _ = fptq_run(official, package / "model", *PROMPT)
    assert tokens == fptq_run(runner, package / "model", *PROMPT)[0]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_model_without_a_cache(runner: Path, tmp_path: Path, kind: str) -> None:
    """Each token is followed by the next one in a circle, by the last bit of a half."""
    high, low = (-1 + 2**-20, -1) if kind == "float32" else (0x3C01, 0x3C00)  # halves as bits
    rows = [[high if j == (i + 1) % 5 else low for j in range(5)] for i in range(5)]
    model = parsed(
        bigram_text(rows).replace("float[", "float16[" if kind == "float16" else "float[")
    )
    onnx.save(model, tmp_path / "model.onnx")
    decoder = open_decoder(tmp_path / "model.onnx", threads=1)
    specs = session_inputs(decoder.session), session_outputs(decoder.session)
    lines = decoder_text(
        find_io(tmp_path / "model.onnx", *specs), graph="model.onnx", portable=None, library=None,
        shared_cache=False, context_length=None, vocabulary=None, end=(),
    )  # fmt: skip
    (tmp_path / "decoder.txt").write_text(lines)
    assert fptq_run(runner, tmp_path, "--tokens", 6, 2)[0] == [3, 4, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["llama-optimum", "gpt2-optimum", "llama-dynamo-past"])
def test_other_exporters(shared_exports: Path, runner: Path, tmp_path: Path, name: str) -> None:
    """Positions as inputs, other attention, caches of other names."""
    if not (shared_exports / name).is_dir():
        pytest.skip(f"no {name} here")
    decoder = open_decoder(shared_exports / name, threads=1)
    (file,) = (shared_exports / name).glob("*.onnx")
    lines = decoder_text(
        decoder.io, graph=file.name, portable=None, library=None, shared_cache=False,
        context_length=None, vocabulary=None, end=(),
    )  # fmt: skip
    for path in (shared_exports / name).iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "decoder.txt").write_text(lines)
    expected = list(generate(decoder, [3, 14, 15], 12))
    assert fptq_run(runner, tmp_path, "--tokens", 12, 3, 14, 15)[0] == expected


@pytest.mark.parametrize("line", ["what is this", "cache a b float32 9 1", "input_ids x", "graph"])
def test_a_damaged_description(package: Path, runner: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "decoder.txt").write_text(f"graph model.onnx\n{line}\n")
    _, told = fptq_run(runner, tmp_path, 1, code=2)
    assert "decoder.txt has a line" in told


def test_two_runs_give_one_archive(custom: Path, edge: Path, tmp_path: Path) -> None:
    again = tmp_path / edge.name
    assert command("package", custom, "--for", "edge", "-o", again).returncode == 0
    assert again.read_bytes() == edge.read_bytes()
    for name, entry in members(edge).items():
        assert (entry.mtime, entry.uid, entry.gname) == (0, 0, "")
        assert entry.mode == (0o755 if name.endswith((".sh", ".so")) else 0o644)


def test_a_zip(custom: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    assert command("package", custom, "--for", "edge", "-o", archive).returncode == 0
    out = tmp_path / "out"
    done = command("package", "--check", archive, "-o", out)
    assert done.returncode == 0, done.stderr
    assert smoke_test(out).returncode == 0
