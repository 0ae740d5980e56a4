"""The command line and bad input: its exit code, its one line on stderr, nothing left behind."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.command_line import MODEL, RANDOM_FEW, command, leftovers, refused


@pytest.fixture(scope="module")
def converted(conversions):
    """The embedded model, converted to all targets once, and what was printed."""
    done = conversions.command("all", MODEL, "--target", "all", *RANDOM_FEW)
    return done.folder, done.printed


@pytest.fixture
def copy(tmp_path):
    """A copy of the embedded model that a test may spoil."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def test_no_such_path(tmp_path):
    refused("convert", tmp_path / "absent", saying="no such file or folder")


def test_not_an_onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_text("hello, I am a text file")
    refused("convert", tmp_path / "model.onnx", "-o", tmp_path / "out", saying="ONNX")
    assert leftovers(tmp_path) == ["model.onnx"]


def test_truncated_and_missing_external_data(copy, tmp_path):
    data = copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: 1 << 20])
    refused("convert", copy, "-o", tmp_path / "out", saying="truncated")
    data.unlink()
    refused("convert", copy, "-o", tmp_path / "out", saying="missing")
    assert leftovers(tmp_path) == ["model"]


def test_external_data_outside_the_folder(copy, tmp_path):
    shutil.move(copy / "model.onnx.data", tmp_path / "elsewhere.data")
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere.data"
    onnx.save(model, copy / "model.onnx")
    refused("convert", copy, "-o", tmp_path / "out", saying="outside the model's folder")


def test_already_quantized(converted, tmp_path):
    folder = converted[0] / "matmulnbits"
    refused("convert", folder, "-o", tmp_path / "out", saying="already quantized")


def test_empty_calibration_text(tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    refused(
        "convert", MODEL, "-o", tmp_path / "o", "--calibration", tmp_path / "empty.txt",
        saying="empty",
    )  # fmt: skip


def test_text_without_tokenizer(copy, tmp_path):
    (copy / "tokenizer.json").unlink()
    text = MODEL / "heldout.txt"
    refused(
        "convert", copy, "-o", tmp_path / "o", "--calibration", text, saying="no tokenizer.json"
    )


@pytest.mark.slow
def test_a_tokenizer_from_elsewhere(copy, tmp_path):
    (copy / "tokenizer.json").unlink()
    result = command(
        *("convert", copy, "-o", tmp_path / "o", "--calibration", MODEL / "heldout.txt"),
        *("--tokenizer", MODEL / "tokenizer.json", *RANDOM_FEW),
    )
    assert result.returncode == 0, result.stderr
    written, given = tmp_path / "o" / "tokenizer.json", MODEL / "tokenizer.json"
    assert written.read_bytes() == given.read_bytes()


def test_wrong_name_rank_or_dtype_in_npz(tmp_path):
    for arrays, what in (
        ({"ids": np.zeros((1, 4), np.int64)}, "ids"),
        ({"input_ids": np.zeros(4, np.int64)}, "input_ids"),
        ({"input_ids": np.zeros((1, 4), np.float32)}, "input_ids"),
    ):
        np.savez(tmp_path / "sample.npz", **arrays)
        refused(
            "convert", MODEL, "-o", tmp_path / "o", "--calibration", tmp_path / "sample.npz",
            saying=what,
        )  # fmt: skip
    assert leftovers(tmp_path) == ["sample.npz"]


def test_nan_activations_name_the_linear(copy, tmp_path):
    model = ir.load(copy / "model.onnx")
    name = "model.layers.2.post_attention_layernorm.weight"
    value = model.graph.initializers[name]
    gain = value.const_value.numpy().copy()
    gain[:] = 3e38  # finite, and what it gives is not
    value.const_value = ir.tensor(gain, name=name)
    ir.save(model, copy / "model.onnx")
    refused("convert", copy, "-o", tmp_path / "o", *RANDOM_FEW, saying="layers.2.mlp")


def test_nan_in_a_weight_names_the_weight(copy, tmp_path):
    model = ir.load(copy / "model.onnx")
    name = "model.layers.2.post_attention_layernorm.weight"
    value = model.graph.initializers[name]
    gain = value.const_value.numpy().copy()
    gain[3] = np.nan
    value.const_value = ir.tensor(gain, name=name)
    ir.save(model, copy / "model.onnx")
    for words in (["convert", "-o", tmp_path / "o"], ["inspect"], ["inspect", "--errors"]):
        refused(words[0], copy, *words[1:], *RANDOM_FEW, saying=f"the weight '{name}' (of Skip")
    refused("convert", copy, "-o", tmp_path / "o", "--recipe", "fp16", saying=f"'{name}'")
    assert not (tmp_path / "o").exists()


def test_output_exists(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    refused("convert", MODEL, "-o", tmp_path / "out", saying="--overwrite")
    refused("convert", MODEL, "-o", tmp_path / "out", "--overwrite", saying="not written by this")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


@pytest.mark.slow
def test_overwrite_replaces_an_earlier_output(tmp_path):
    for extra in ((), ("--overwrite",)):
        result = command(
            "convert", MODEL, "-o", tmp_path / "out", "--verify-samples", 0, *RANDOM_FEW, *extra
        )
        assert result.returncode == 0, result.stderr
    assert leftovers(tmp_path) == ["out"]


def test_output_inside_the_input(copy):
    refused("convert", copy, "-o", copy / "out", saying="inside the input")
    refused("convert", copy / "model.onnx", "-o", copy, "--overwrite", saying="folder of the input")


@pytest.mark.slow
@pytest.mark.process
def test_disk_full(tmp_path):
    # A file size limit is the portable way to make writing fail half-way.
    limited = "import resource, sys; from fptq_onnx.cli.main import main;" + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"sys.exit(main(['convert', {str(MODEL)!r}, '-o', {str(tmp_path / 'out')!r},"
        " '--max-samples', '1', '--max-seq-len', '16']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 2, result.stderr
    assert "exceeds the size allowed" in result.stderr and "Traceback" not in result.stderr
    assert leftovers(tmp_path) == []


def test_few_tokens_are_warned_of(tmp_path):
    few, enough = tmp_path / "few.txt", tmp_path / "enough.txt"
    few.write_text("Once upon a time.")
    enough.write_text("Once upon a time there was a girl who had a red ball. " * 60)
    for text, warned in ((few, True), (enough, False)):
        done = command("convert", MODEL, "--recipe", "paper", "--dry-run", "--calibration", text)
        assert done.returncode == 0, done.stderr
        assert ("tokens are few to calibrate on" in done.stdout) == warned


@pytest.mark.process
def test_interrupt_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fptq_onnx", "convert", str(MODEL)),
            *("-o", str(tmp_path / "out"), "--verify-samples", "2000", "--max-samples", "4000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "linears" in process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("--ignore", "no_such_layer"), "matches no linear"),
        (("--ignore", "("), "not a regular expression"),
        (("--v0", "200"), "v0 <= v1"),
        (("--target", "gguf"), "unknown target"),
        (("--block-size", "48"), "block size 48"),
        (("--max-samples", "0"), "--max-samples"),
        (("--calibration", "absent.txt"), "absent.txt"),
        (("--plan", "absent.json"), "absent.json"),
    ],
)
def test_bad_options(tmp_path, arguments, saying):
    refused("convert", MODEL, "-o", tmp_path / "out", *RANDOM_FEW, *arguments, saying=saying)
    assert leftovers(tmp_path) == []


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments", [("convert", MODEL, "-o", "out", *RANDOM_FEW), ("inspect", MODEL, *RANDOM_FEW)]
)
def test_full_standard_output(tmp_path, arguments):
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fptq_onnx", *map(str, arguments)],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert "standard output" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_a_plan_decides(tmp_path):
    for option in (
        ("--v0", "3"), ("--activation-scheme", "static"), ("--equalization", "none"),
        ("--weight-method", "rtn"), ("--embedding-bits", "4"),
    ):  # fmt: skip
        saying = f"{option[0]} cannot be combined with --plan"
        refused("convert", MODEL, "--plan", "plan.json", *option, saying=saying)


@pytest.mark.slow
def test_statistics_of_another_model(tmp_path):
    stats = tmp_path / "stats.npz"
    assert command("convert", MODEL, "--dry-run", "--stats", stats, *RANDOM_FEW).returncode == 0
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(MODEL, copy)
    done = command("convert", copy, "--dry-run", "--stats", stats, *RANDOM_FEW)
    assert done.returncode == 0, done.stderr
    shutil.copytree(MODEL, other)
    data = np.fromfile(other / "model.onnx.data", np.uint8)
    data[::2] ^= 1  # the last bit of each float16
    data.tofile(other / "model.onnx.data")
    refused("convert", other, "--dry-run", "--stats", stats, saying="are of another model")


def test_missing_statistics_among_several(tmp_path):
    arguments = ("--stats", tmp_path / "a.npz", "--stats", tmp_path / "b.npz")
    refused("convert", MODEL, *arguments, saying="make it first, with --stats a.npz alone")


def test_external_data_behind_a_link_out_of_the_folder(copy, tmp_path):
    """As in a Hugging Face cache: refused, saying what to do."""
    data = next(path for path in copy.iterdir() if path.suffix == ".data")
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    refused("convert", copy, "-o", tmp_path / "out", saying="a symbolic link): copy the files")


def test_a_failure_of_onnxruntime_is_told_once(converted, monkeypatch):
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", "bogus")
    result = refused("run", converted[0] / "custom", "--prompt", "x", saying="names no kernel")
    assert len(result.stderr.splitlines()) == 1


def test_negative_numbers(tmp_path):
    arguments = ("convert", MODEL, "-o", tmp_path / "out", "--verify-samples", "-1")
    refused(*arguments, saying="must not be negative")
