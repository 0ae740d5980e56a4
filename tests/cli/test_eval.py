"""`fptq-onnx eval` as a user meets it."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from support.bigrams import parsed
from support.command_line import MODEL, command, refused

TEXT = MODEL / "heldout.txt"
FEW = ("--max-windows", "2", "--window", "64", "--threads", "1")


def test_a_table_for_people_and_json_for_machines(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    both = ("--tasks", "perplexity,lastword", "--json")
    done = command("eval", MODEL, "--reference", MODEL, "--data", TEXT, *FEW, *both, report)
    assert done.returncode == 0, done.stderr
    data = json.loads(report.read_text())
    lines = done.stdout.splitlines()
    assert lines[0] == f"model      {MODEL}" and lines[1] == f"reference  {MODEL}"
    assert "heldout.txt: 2 windows of up to 64 tokens, 126 predicted, 2 passages (1 sh" in lines[2]
    assert lines[4].split() == ["model", "s.e.", "reference", "s.e."]
    value, error = data["perplexity"]["perplexity"].values()
    figures = [f"{value:.4f}", f"{error:.4f}"]
    assert lines[5].split() == ["perplexity", *figures, *figures]
    assert len({len(line) for line in lines[4:6]}) == 1  # columns are aligned
    assert ["KL", "to", "reference", "(nats)", "0.00000", "0.00000"] in map(str.split, lines)
    again = command("eval", MODEL, "--reference", MODEL, "--data", TEXT, *FEW, *both, "-")
    assert json.loads(again.stdout) == data


def test_the_window_is_cut_to_the_context() -> None:
    done = command(
        "eval", MODEL, "--data", TEXT, "--window", 900, "--max-windows", 1, "--json", "-"
    )
    data = json.loads(done.stdout)
    assert data["window"] == 256 and data["perplexity"]["predictions"] == 255
    assert data["perplexity"]["perplexity"]["standard_error"] is None  # one window has none
    assert data["reference"] is None and data["lastword"] is None


def test_no_bos() -> None:
    done = command("eval", MODEL, "--data", TEXT, *FEW, "--no-bos", "--json", "-")
    plain = command("eval", MODEL, "--data", TEXT, *FEW, "--json", "-")
    without, with_bos = json.loads(done.stdout), json.loads(plain.stdout)
    assert (without["prefix"], with_bos["prefix"]) == ([], [1])
    assert without["perplexity"]["perplexity"] != with_bos["perplexity"]["perplexity"]


def test_progress_is_shown_and_can_be_silenced() -> None:
    done = command("eval", MODEL, "--data", TEXT, *FEW, "--quiet")
    assert done.returncode == 0 and done.stderr == ""


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    refused("eval", MODEL, "--data", tmp_path / "absent.txt", saying="cannot read the text")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n<|endoftext|>\n")
    refused("eval", MODEL, "--data", empty, saying="has no text to predict")
    one = tmp_path / "one.txt"
    one.write_text("a")  # a token, predicted from the beginning of a text alone
    refused("eval", MODEL, "--data", one, saying="has no text to predict")
    refused("eval", MODEL, "--data", empty, "--tasks", "lastword", saying="no text to predict")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "word"}\n')
    refused("eval", MODEL, "--data", lines, saying="passage 1 is one word")
    refused("eval", MODEL, "--data", lines, "--text-field", "body", saying="--text-field")
    refused("eval", MODEL, "--data", tmp_path, saying="must end in .txt or .jsonl")


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    refused("eval", tmp_path / "absent", "--data", TEXT, saying="no such file or folder")
    copy = Path(shutil.copytree(MODEL, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    refused("eval", copy, "--data", TEXT, saying="no tokenizer.json")
    for extra in (("--tokenizer", MODEL), ("--reference", MODEL)):
        done = command("eval", copy, "--data", TEXT, *FEW, *extra)
        assert done.returncode == 0, done.stderr
    relu = tmp_path / "relu.onnx"
    onnx.save(parsed("g (float[2] x) => (float[2] y) {y = Relu(x)}"), relu)
    result = refused(
        "eval", relu, "--data", TEXT, "--tokenizer", MODEL, saying="not a causal language model"
    )
    assert "npz" not in result.stderr  # advice that only suits conversion


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("--window", 1), "--window"),
        (("--max-windows", 0), "--max-windows"),
        (("--threads", -1), "--threads"),
        (("--tasks", "mmlu"), "unknown task 'mmlu'"),
        (("--json", "absent/report.json"), "no folder absent"),
        (("--json", MODEL), "is a folder"),
    ],
)
def test_bad_options(arguments: tuple[object, ...], saying: str) -> None:
    refused("eval", MODEL, "--data", TEXT, *arguments, saying=saying)
