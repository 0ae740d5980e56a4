"""The programs in examples/ run, and do what they say. The paper's recipe keeps them short."""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.command_line import MODEL, RANDOM_FEW
from support.conversion_cache import ConversionCache
from support.edge_tools import runtime_library
from tokenizers import Tokenizer

import fptq_onnx
from fptq_onnx.cli import main as command
from fptq_onnx.scheme.config import PAPER

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPT = [1, 432, 445, 261, 406]  # BOS and "Once upon a time"


def example(name: str) -> SimpleNamespace:
    """The functions of an example; its main is not run."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert without writing samples and without solving for weights."""
    patched = functools.partial(
        fptq_onnx.convert,
        config=PAPER,
        samples=fptq_onnx.Samples("random", max_samples=2, max_seq_len=32),
        verify_samples=0,
    )
    monkeypatch.setattr(fptq_onnx, "convert", patched, raising=False)


@pytest.fixture(scope="module")
def converted(conversions: ConversionCache) -> Path:
    """The embedded model, by the command line."""
    options = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW, "-q")
    output = conversions.command("story", MODEL, *options).folder
    return output


@pytest.fixture(scope="module")
def expected(converted: Path) -> list[int]:
    """What `fptq-onnx run` writes after the prompt."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as written:
        code = command(["run", str(converted), "Once upon a time", "--max-tokens", "8", "--ids"])
    assert code == 0
    return [int(word) for word in written.getvalue().split()]


def test_convert_and_run_writes_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("convert_and_run").main(MODEL, tmp_path / "story")
    told, text = capsys.readouterr().out.split("Once upon a time")
    assert "\nwritten      custom: " in told
    assert len(text.split()) > 20


def test_convert_and_run_runs_as_a_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its arguments are a model and an output."""
    program = str(EXAMPLES / "convert_and_run.py")
    monkeypatch.setattr("sys.argv", [program, str(MODEL), str(tmp_path / "story")])
    runpy.run_path(program, run_name="__main__")
    assert "Once upon a time" in capsys.readouterr().out
    assert (tmp_path / "story" / "plan.json").is_file()


def test_its_session_writes_the_tokens_that_run_writes(
    converted: Path, expected: list[int]
) -> None:
    program = example("convert_and_run")
    assert program.generate(converted, PROMPT, len(expected)) == expected


def test_calibration_reader_is_what_is_calibrated_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("calibration_reader").main(tmp_path / "story")
    assert "16 samples, 31 linears" in capsys.readouterr().out
    report = json.loads((tmp_path / "story" / "report.json").read_text(encoding="utf-8"))
    assert "StoryReader" in json.dumps(report)


def test_the_reader_gives_each_window_once() -> None:
    program = example("calibration_reader")
    reader = program.StoryReader(MODEL / "heldout.txt", MODEL / "tokenizer.json")
    windows = list(iter(reader.get_next, None))
    assert reader.get_next() is None
    assert len({window["input_ids"].tobytes() for window in windows}) == len(windows) > 16
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    stories = (MODEL / "heldout.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    lengths = [1 + len(tokenizer.encode(story.strip()).ids) for story in stories]
    assert len(windows) == sum(length // program.LENGTH for length in lengths)
    first = np.concatenate([window["input_ids"][0] for window in windows[: lengths[0] // 128]])
    assert first[0] == program.BOS
    assert stories[0].strip().startswith(tokenizer.decode(first.tolist()).strip())


@pytest.mark.slow
def test_edit_plan_changes_what_was_edited_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("edit_plan").main(tmp_path / "story")
    assert "8 bits: /lm_head/MatMul" in capsys.readouterr().out
    plan = fptq_onnx.Plan.load(tmp_path / "story" / "plan.json")
    wide = [linear for linear in plan.linears if linear.weight_bits == 8]
    assert [(linear.name, linear.scheme) for linear in wide] == [("/lm_head/MatMul", "per_token")]
    assert {linear.weight_bits for linear in plan.linears if linear not in wide} == {4}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, starts_processes: None) -> Path:
    """examples/cpp, built as its README says; warnings are errors."""
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("needs a C++ compiler, c++, and cmake")
    place = tmp_path_factory.mktemp("cpp")
    for arguments in (
        ("-S", EXAMPLES / "cpp", "-B", place, "-DCMAKE_CXX_FLAGS=-Werror"),
        ("--build", place),
    ):
        done = subprocess.run(
            ["cmake", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "fptq_example"


def test_the_cpp_program_writes_the_same_tokens(
    program: Path, converted: Path, expected: list[int]
) -> None:
    model = converted / "model.onnx"
    done = subprocess.run(
        [program, runtime_library(), fptq_onnx.library_path(), model, *map(str, PROMPT)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [int(word) for word in done.stdout.split()] == expected


def test_the_cpp_program_says_what_is_wrong(program: Path, converted: Path) -> None:
    library, ops = runtime_library(), fptq_onnx.library_path()
    for arguments, saying in (
        ((), "usage: fptq_example"),
        ((ops, ops, "model.onnx", "1"), "is not ONNX Runtime"),
        ((library, ops, converted / "absent.onnx", "1"), "File doesn't exist"),
    ):
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1 and not done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("fptq_example: error: ") and saying in line
