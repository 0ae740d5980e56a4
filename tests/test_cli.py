"""The command line as a user meets it: a subprocess, its exit code, its one line on stderr."""

import json
import os
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

MODEL = Path(__file__).parent.parent / "models" / "tinystories-7m"
RANDOM_FEW = ("--max-samples", "2", "--max-seq-len", "32")


def command(*arguments, **options):
    """Run the command; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "fptq_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def refused(*arguments, saying, code=2, **options):
    """The command fails with one clear line, and no traceback."""
    result = command(*arguments, **options)
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("fptq-onnx: ")]
    assert len(lines) == 1, result.stderr
    assert saying in lines[0], lines[0]
    assert "Traceback" not in result.stderr
    return result


def leftovers(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The embedded model, converted to all targets once."""
    output = tmp_path_factory.mktemp("out") / "all"
    result = command("convert", MODEL, "-o", output, "--target", "all", *RANDOM_FEW)
    assert result.returncode == 0, result.stderr
    return output, result.stdout


@pytest.fixture
def copy(tmp_path):
    """A copy of the embedded model that a test may spoil."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def test_convert_says_what_it_did(converted):
    _, printed = converted
    assert "31 of 31 MatMul-like nodes are linears" in printed
    assert "per-token dynamic" in printed and "KL" in printed
    assert "qdq target is for interchange" in printed


@pytest.mark.parametrize("target", ["custom", "matmulnbits", "qdq"])
def test_output_folder_is_complete_and_says_where_it_came_from(converted, target):
    folder = converted[0] / target
    expected = {"model.onnx", "model.onnx.data", "plan.json", "report.json", "tokenizer.json"}
    assert expected <= {path.name for path in folder.iterdir()}
    report = json.loads((folder / "report.json").read_text())
    assert report["target"] == target and report["linears"] == 31
    assert 4.2 < report["bits_per_weight"] < 4.5
    assert 0 < report["verification"]["kl"] < 0.1
    stamped = {
        entry.key: entry.value
        for entry in onnx.load(folder / "model.onnx", load_external_data=False).metadata_props
    }
    assert json.loads(stamped["fptq.source_sha256"]) == report["source"]["sha256"]
    model = ir.load(folder / "model.onnx")
    offsets = [
        value.const_value.offset
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    assert len(offsets) > 60 and all(offset % 64 == 0 for offset in offsets)


def test_custom_target_adds_only_our_op(converted):
    before = [node.op_type for node in ir.load(MODEL / "model.onnx").graph]
    after = [node.op_type for node in ir.load(converted[0] / "custom" / "model.onnx").graph]
    assert set(after) - set(before) == {"MatMulW4A8"}
    assert after.count("MatMulW4A8") == 31 and "MatMul" not in after


def test_run_writes_text(converted):
    result = command(
        "run", converted[0] / "custom", "--prompt", "Once upon a time", "--max-new-tokens", 20
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) >= 8 and "tokens/s" in result.stderr


def test_every_forced_kernel_writes_the_same_text(converted):
    texts = set()
    for kernel in ("", "avx2", "scalar"):
        result = command(
            "run",
            converted[0] / "custom",
            "--prompt",
            "Tom had a red ball",
            "--max-new-tokens",
            24,
            env={**os.environ, "FPTQ_FORCE_KERNEL": kernel},
        )
        if "this CPU lacks" not in result.stderr:
            assert result.returncode == 0, result.stderr
            texts.add(result.stdout)
    assert len(texts) == 1


def test_output_goes_through_graphsurgeon_unchanged(converted, tmp_path):
    gs = pytest.importorskip("onnx_graphsurgeon")
    folder = converted[0] / "custom"
    graph = gs.import_onnx(onnx.load(folder / "model.onnx"))
    onnx.save(gs.export_onnx(graph), tmp_path / "model.onnx")
    for name in ("tokenizer.json", "genai_config.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    arguments = ("--prompt", "The cat", "--max-new-tokens", "16")
    ours, theirs = command("run", folder, *arguments), command("run", tmp_path, *arguments)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.stdout == theirs.stdout and len(ours.stdout) > 10


def test_plan_is_replayed_and_edited(converted, tmp_path):
    plan = json.loads((converted[0] / "custom" / "plan.json").read_text())
    plan["linears"][0].update(scheme="per_token")
    plan["linears"][1].update(scheme="float")
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(plan))
    result = command("convert", MODEL, "-o", tmp_path / "out", "--plan", edited, *RANDOM_FEW, "-q")
    assert result.returncode == 0, result.stderr
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "model.onnx").graph}
    first, second = (entry["name"] for entry in plan["linears"][:2])
    assert nodes[first].attributes["activation"].value == "per_token"
    assert nodes[second].op_type == "MatMul"


def test_statistics_are_saved_and_reused(tmp_path):
    stats = tmp_path / "stats.npz"
    first = command("convert", MODEL, "--dry-run", "--stats", stats, *RANDOM_FEW)
    assert first.returncode == 0 and stats.exists()
    again = command("convert", MODEL, "--dry-run", "--stats", stats, *RANDOM_FEW)
    assert "calibration  not run" in again.stdout
    strip = [line for line in first.stdout.splitlines() if not line.startswith("calibration")]
    assert strip == [line for line in again.stdout.splitlines() if "calibration  " not in line]


def test_ignore_keeps_a_linear_in_float(tmp_path):
    result = command("convert", MODEL, "-o", tmp_path / "out", "--ignore", "lm_head", *RANDOM_FEW)
    assert result.returncode == 0, result.stderr
    assert "1 float" in result.stdout
    nodes = [node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph]
    assert nodes.count("MatMul") == 1


def test_inspect_shows_float_and_converted_models(converted):
    text = command("inspect", MODEL, *RANDOM_FEW)
    assert text.returncode == 0 and "o_proj" in text.stdout and "static" in text.stdout
    data = json.loads(command("inspect", MODEL, "--json", *RANDOM_FEW).stdout)
    assert len(data["linears"]) == 31 and data["others"] == []
    assert "target custom" in command("inspect", converted[0] / "custom").stdout


def test_library_prints_a_file_and_version_a_number():
    assert Path(command("library").stdout.strip()).is_file()
    assert command("--version").stdout.startswith("fptq-onnx 0.")


def test_input_is_never_changed(converted):
    committed = (MODEL / "model.onnx").stat().st_mtime
    assert committed < (converted[0] / "custom" / "model.onnx").stat().st_mtime


# --- bad input ---


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


def test_no_linears(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    refused("convert", tmp_path / "relu.onnx", "-o", tmp_path / "o", saying="no linear layer")


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
    gain[3] = np.nan
    value.const_value = ir.tensor(gain, name=name)
    ir.save(model, copy / "model.onnx")
    refused("convert", copy, "-o", tmp_path / "o", *RANDOM_FEW, saying="layers.2.mlp")


def test_output_exists(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    refused("convert", MODEL, "-o", tmp_path / "out", saying="--overwrite")
    refused("convert", MODEL, "-o", tmp_path / "out", "--overwrite", saying="not written by this")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


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


def test_disk_full(tmp_path):
    # A file size limit is the portable way to make writing fail half-way.
    limited = "import resource, sys; from fptq_onnx.cli import main;" + (
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
