"""Flags of version 0.1: they do what the flags of today do, and nobody is shown them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import MODEL, command, refused

from fptq_onnx.cli import build_parser, main
from fptq_onnx.cli.old_flags import old_name_notes, rename_values

PAIRS = [
    (["--w8", "head", "--w8=role:down"], ["--int8-layers", "head", "--int8-layers=role:down"]),
    (["--weights", "mse"], ["--weight-method", "mse"]),
    (["--policy", "static"], ["--activation-scheme", "static"]),
    (["--policy", "float"], ["--activation-scheme", "weight_only"]),
    (["--activation-scheme", "float"], ["--activation-scheme", "weight_only"]),
    (["--bits-budget", "4.6"], ["--target-bits", "4.6"]),
    (["--w8", "a", "--int8-layers", "b"], ["--int8-layers", "a", "--int8-layers", "b"]),
    (["--no-clean-up"], ["--no-graph-optimization"]),
]


def parsed(*arguments: str) -> argparse.Namespace:
    options = build_parser().parse_args(arguments)
    rename_values(options)
    return options


def values(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "old_names_used"}


CASES = [
    (name, *pair)
    for name in ("convert", "inspect")
    for pair in PAIRS
    if name == "convert" or pair[0] != ["--no-clean-up"]
]


@pytest.mark.parametrize(("name", "old", "new"), CASES)
def test_an_old_flag_is_the_new_one(name: str, old: list[str], new: list[str]) -> None:
    given, today = parsed(name, "m", *old), parsed(name, "m", *new)
    assert values(given) == values(today) != values(parsed(name, "m"))
    assert old_name_notes(given) and not old_name_notes(today)


def test_the_options_before_the_model_too() -> None:
    assert parsed("convert", "--w8", "head", "m").int8_layers == ["head"]


def test_group_size_is_block_size() -> None:
    assert parsed("convert", "m", "--group-size", "64").block_size == 64


def test_tasks() -> None:
    given = parsed("eval", "m", "--data", "t.txt", "--tasks", "perplexity,lastword")
    assert given.tasks == "perplexity,lambada"
    assert old_name_notes(given) == [
        "task lastword is now lambada; the old name goes with version 0.2"
    ]


def test_a_bad_value_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", "m", "--bits-budget", "many"])
    assert ended.value.code == 2
    assert "argument --bits-budget: invalid float value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["convert", "inspect", "eval"])
def test_help_shows_none(name: str) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main([name, "--help"])
    words = shown.getvalue().replace("[", " ").replace(",", " ").split()
    assert "--help" in words
    gone = {"--w8", "--weights", "--policy", "--bits-budget", "--no-clean-up", "lastword"}
    assert not gone & set(words)


def test_the_note_is_on_standard_error_alone(tmp_path: Path) -> None:
    few = (
        "--calibration",
        "random",
        "--max-samples",
        "2",
        "--max-seq-len",
        "8",
        "--policy",
        "float",
    )
    loud = command("inspect", MODEL, "--json", *few)
    assert loud.returncode == 0, loud.stderr
    assert {row["scheme"] for row in json.loads(loud.stdout)["linears"]} == {"weight_only"}
    assert [line for line in loud.stderr.splitlines() if line.startswith("fptq-onnx: ")] == [
        "fptq-onnx: note: --policy is now --activation-scheme; the old name goes with version 0.2",
        "fptq-onnx: note: activation scheme float is now weight_only; the old name goes with "
        "version 0.2",
    ]
    quiet = command("inspect", MODEL, "--json", "-q", *few)
    assert (quiet.stderr, quiet.stdout) == ("", loud.stdout)


def test_an_error_stays_one_line_and_names_the_flag_of_today(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("convert", MODEL, "-o", out, "--w8", "(", saying="--int8-layers '('")
    refused("convert", MODEL, "-o", out, "--policy", "best", saying="--activation-scheme 'best' is")
