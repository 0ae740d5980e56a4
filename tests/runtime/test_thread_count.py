"""A number of threads that would only take memory is refused, by every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.command_line import MODEL

from fptq_onnx.cli.main import main
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.runtime import thread_count
from fptq_onnx.runtime.session import open_session
from fptq_onnx.runtime.thread_count import check_threads

# Small, and still refused: nothing here may start so many should a check be missing.
MANY = 9


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_count.os, "cpu_count", lambda: 2)


def test_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for fine in (None, 0, 1, 8):
        check_threads(fine)
    for wrong in (-1, 9, 10**30):
        with pytest.raises(FptqError, match=r"from 0, .* to 8 \(4 for each of the 2 CPUs here\)"):
            check_threads(wrong)
    monkeypatch.setattr(thread_count.os, "cpu_count", lambda: None)
    with pytest.raises(FptqError, match="to 4"):
        check_threads(5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", MODEL, "Once"),
        ("serve", MODEL, "--port", "0"),
        ("bench", MODEL),
        ("convert", MODEL, "-o", "out"),
        ("inspect", MODEL),
        ("eval", MODEL, "--data", "x.txt"),
        ("compare", MODEL, "--data", "x.txt"),
        ("export", MODEL, "-o", "out"),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("threads", [-1, MANY])
def test_commands(
    arguments: tuple[object, ...], threads: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, arguments), "--threads", str(threads)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("fptq-onnx: error: --threads must be from 0") and f"got {threads}" in line
    )
    assert not os.listdir(tmp_path)


def test_bench_takes_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(MODEL), "--threads", "1", str(MANY)]) == 2
    assert f"got {MANY}" in capsys.readouterr().err


def test_functions(tmp_path: Path) -> None:
    for call in (
        lambda: LanguageModel.open(MODEL, threads=MANY),
        lambda: open_session(MODEL / "model.onnx", threads=MANY),
        lambda: convert(MODEL, tmp_path / "out", threads=MANY),
    ):
        with pytest.raises(FptqError, match=f"got {MANY}"):
            call()
