"""Running the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from support.in_process import run_main

MODEL = Path(__file__).parents[2] / "models" / "tinystories-7m"
RANDOM_FEW = ("--max-samples", "2", "--max-seq-len", "32")

Finished = subprocess.CompletedProcess[str]


def command(
    *arguments: object,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run the command in this process; returns what a finished process of its own would be."""
    return run_main([str(argument) for argument in arguments], input=input, env=env, cwd=cwd)


def process(
    *arguments: object,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> Finished:
    """Run the command in a process of its own, for tests marked `process`."""
    return subprocess.run(
        [sys.executable, "-m", "fptq_onnx", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=600, input=input, cwd=cwd,
        preexec_fn=preexec_fn, env=os.environ if env is None else env,
    )  # fmt: skip


def refused(
    *arguments: object,
    saying: str,
    code: int = 2,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """The command fails with one clear line, and no traceback."""
    result = command(*arguments, env=env)
    assert_refused(result, saying=saying, code=code)
    return result


def assert_refused(result: Finished, *, saying: str, code: int = 2) -> None:
    """A finished command failed with one clear line, and no traceback."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("fptq-onnx: ")]
    assert len(lines) == 1, result.stderr
    assert saying in lines[0], lines[0]
    assert "Traceback" not in result.stderr


def leftovers(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())
