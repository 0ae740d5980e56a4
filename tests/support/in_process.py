"""The command line in this process: what it prints, its exit code, and nothing left changed.

Importing the package costs more than most refusals do, so tests start a process of its own only
where they are about processes (support.command_line.process).
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO
from unittest import mock

from fptq_onnx.cli.main import main

_HANDLED = (signal.SIGINT, signal.SIGTERM)


def run_main(
    arguments: Sequence[str],
    *,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call main with these arguments, and give what a process of its own would have given.

    Output is taken at the file descriptors 1 and 2, as ONNX Runtime and child processes write
    there too. Environment, folder, signal handlers and streams are afterwards as before.

    Args:
        arguments: the words after `fptq-onnx`.
        input: what standard input holds, as UTF-8.
        env: the whole environment; this process's own by default.
        cwd: the folder to be in.
    """
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    here = os.getcwd()
    with ExitStack() as stack:
        stack.enter_context(_environment(env))
        out = stack.enter_context(_taken("stdout", 1))
        errors = stack.enter_context(_taken("stderr", 2))
        stdin = io.TextIOWrapper(io.BytesIO(input.encode()), encoding="utf-8")
        stack.enter_context(mock.patch.object(sys, "stdin", stdin))
        try:
            if cwd is not None:
                os.chdir(cwd)
            code = _exit_code(arguments)
        finally:
            os.chdir(here)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        sys.stdout.flush()
        sys.stderr.flush()
        return subprocess.CompletedProcess(arguments, code, _text(out), _text(errors))


def _exit_code(arguments: Sequence[str]) -> int:
    """What the interpreter would exit with; what main does not catch is printed as it would be."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


@contextmanager
def _environment(env: Mapping[str, str] | None) -> Iterator[None]:
    """These variables, and afterwards those of before; only what differs is touched."""
    before = dict(os.environ)
    try:
        _become(before if env is None else env)
        yield
    finally:
        _become(before)


def _become(wanted: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@contextmanager
def _taken(name: str, descriptor: int) -> Iterator[IO[bytes]]:
    """A file that takes what is written to sys.stdout or sys.stderr, and to its descriptor."""
    getattr(sys, name).flush()
    errors = "strict" if name == "stdout" else "backslashreplace"
    with (
        tempfile.TemporaryFile() as file,
        open(descriptor, "w", encoding="utf-8", errors=errors, closefd=False) as stream,
        mock.patch.object(sys, name, stream),
    ):
        before = os.dup(descriptor)
        try:
            os.dup2(file.fileno(), descriptor)
            yield file
        finally:
            os.dup2(before, descriptor)
            os.close(before)


def _text(file: IO[bytes]) -> str:
    """All that was written, line ends as a text stream gives them."""
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")
