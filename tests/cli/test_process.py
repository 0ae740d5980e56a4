"""The command in a process of its own does what it does in the process of the tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from support.command_line import MODEL, command, process
from support.in_process import run_main

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--version",), 0),
        (("convert", "--help"), 0),
        (("library",), 0),
        ((), 2),
        (("convert",), 2),
        (("convert", MODEL, "--target", "gguf"), 2),
        (("run", MODEL, "Once \udcff"), 2),
        (("run", MODEL, "Once", "--ids", "--max-tokens", 4, "--threads", 1), 0),
    ],
)
def test_both_ways_say_the_same(arguments: tuple[object, ...], code: int) -> None:
    apart, here = process(*arguments), command(*arguments)
    assert (apart.returncode, apart.stdout) == (code, here.stdout)
    assert here.returncode == code
    told = [[line for line in done.stderr.splitlines() if "tokens/s" not in line]
            for done in (apart, here)]  # fmt: skip
    assert told[0] == told[1]


def test_piped_text_is_read_by_both() -> None:
    arguments = ("run", MODEL, "--max-tokens", 4, "--threads", 1)
    apart, here = (way(*arguments, input="naïve 日本\n") for way in (process, command))
    assert apart.returncode == 0 and apart.stdout == here.stdout != ""


def test_nothing_is_left_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (
        dict(os.environ), os.getcwd(), sys.stdin, sys.stdout, sys.stderr,
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        [os.fstat(number).st_ino for number in (0, 1, 2)],
    )  # fmt: skip

    def main(arguments: list[str]) -> int:
        os.environ["FPTQ_LEFT"] = arguments[0]
        del os.environ["PATH"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("said")
        os.write(2, b"said below Python\n")
        return 3

    monkeypatch.setattr("support.in_process.main", main)
    done = run_main(["x"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "said below Python\n")
    after = (
        dict(os.environ), os.getcwd(), sys.stdin, sys.stdout, sys.stderr,
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        [os.fstat(number).st_ino for number in (0, 1, 2)],
    )  # fmt: skip
    assert after == before


def test_what_main_does_not_catch_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: list[str]) -> int:
        raise RuntimeError("nobody's mistake")

    monkeypatch.setattr("support.in_process.main", main)
    done = run_main([])
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "RuntimeError: nobody's mistake"
