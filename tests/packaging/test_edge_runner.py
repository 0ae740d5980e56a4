"""What the edge package's runner refuses, and says when its output cannot be written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.edge_tools import fptq_run, run_tokens, runtime_library

pytestmark = pytest.mark.process

PROMPT = [1, 432, 445, 261, 406]


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ((), "give at least one token"),
        (("x",), "a token must be a whole number from 0 to 1000000000, got x"),
        (("-5",), "a token must be a whole number from 0 to 1000000000, got -5"),
        (("--tokens",), "--tokens needs a value"),
        (("--tokens", "0", "1"), "--tokens must be at least 1"),
        (("--tokens", "many", "1"), "--tokens must be a whole number"),
        (("--foo", "1"), "unknown option --foo"),
        (("1", "-t", "2"), "unknown option -t"),
        # One beyond the bound: were it not checked, nothing would break.
        (("--threads", str(4 * (os.cpu_count() or 1) + 1), "1"), "--threads must be from 0 to"),
        (("1", "2048"), "the token 2048 is beyond the model's 2048 tokens"),
        (("99999", "1"), "the token 99999 is beyond the model's 2048 tokens"),
    ],
)
def test_the_runner_refuses(
    package: Path, runner: Path, arguments: tuple[str, ...], saying: str
) -> None:
    tokens, told = fptq_run(runner, package / "model", *arguments, code=2)
    (line,) = told.splitlines()
    assert line.startswith("fptq_run: error: ") and saying in line
    assert not tokens


@pytest.mark.parametrize(
    ("script", "code", "saying"),
    [
        ('"$@" > /dev/full', 2, "fptq_run: error: standard output: No space left on device\n"),
        ('"$@" >&-', 2, "fptq_run: error: standard output is closed\n"),
        # A reader that leaves is no mistake; nor where the signal of it is ignored.
        ('trap "" PIPE; { "$@"; echo "exit $?" >&2; } | true', 0, "exit 0\n"),
    ],
)
def test_output_that_cannot_be_written(
    package: Path, runner: Path, script: str, code: int, saying: str
) -> None:
    arguments = ("--onnxruntime", runtime_library(), "--model", package / "model", *PROMPT)
    done = subprocess.run(
        ["sh", "-c", script, "sh", runner, *map(str, arguments), "--ignore-end", "--tokens", "250"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, saying)


def test_the_runner_without_what_it_needs(package: Path, runner: Path, tmp_path: Path) -> None:
    for arguments, saying in (
        (("--onnxruntime", tmp_path / "absent.so", "--model", package / "model"), "ONNX Runtime:"),
        (("--onnxruntime", runtime_library(), "--model", tmp_path), "no decoder.txt"),
        (("--model", package / "model"), "give --onnxruntime LIB"),
        (("--onnxruntime", package / "lib" / "libfptq_ort_ops.so", "--model", package / "model"),
         "is not ONNX Runtime's library"),
    ):  # fmt: skip
        _, told = run_tokens(runner, *arguments, 1, code=2)
        assert saying in told
