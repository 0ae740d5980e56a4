"""The command line as a user meets it: what it prints and writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.command_line import MODEL, RANDOM_FEW, command
from support.saved_models import fingerprint


@pytest.fixture(scope="module")
def converted(conversions):
    """The embedded model, converted to all targets once, and what was printed."""
    done = conversions.command("all", MODEL, "--target", "all", *RANDOM_FEW)
    return done.folder, done.printed


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
    bits = {"custom": 4.17, "qdq": 4.26, "matmulnbits": 4.36}[target]
    assert report["bits_per_weight"] == pytest.approx(bits, abs=0.01)
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
    assert set(after) - set(before) == {"MatMulW4A8", "Reshape"}  # the embedding
    domains = {node.domain for node in ir.load(converted[0] / "custom" / "model.onnx").graph}
    assert domains == {"", "com.microsoft", "fptq"}
    # Per layer: fused qkv of the export, o, gate and up together, down; and the head.
    assert after.count("MatMulW4A8") == 6 * 4 + 1 and "MatMul" not in after
    assert "Sigmoid" in before and "Sigmoid" not in after


def test_threads_do_not_change_the_text_and_fusing_hardly_the_model(converted, tmp_path):
    plan = converted[0] / "custom" / "plan.json"
    arguments = ("--plan", plan, "--no-fuse", *RANDOM_FEW)
    result = command("convert", MODEL, "-o", tmp_path / "out", *arguments)
    assert result.returncode == 0, result.stderr
    nodes = [node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph]
    assert nodes.count("MatMulW4A8") == 31
    # Fused attention and gates round otherwise, and int8 codes after them can flip.
    divergences = []
    for folder in (converted[0] / "custom", tmp_path / "out"):
        texts = set()
        for threads in ("1", "2"):
            arguments = ("--prompt", "Once upon a time", "--max-new-tokens", "60")
            done = command("run", folder, *arguments, "--threads", threads)
            assert done.returncode == 0, done.stderr
            texts.add(done.stdout)
        assert len(texts) == 1
        report = json.loads((folder / "report.json").read_text())
        divergences.append(report["verification"]["kl"])
    assert divergences[0] == pytest.approx(divergences[1], rel=0.1)


@pytest.mark.slow
def test_8_bit_weights_for_some(tmp_path):
    result = command(
        "convert", MODEL, "-o", tmp_path / "out", "--int8-layers", "lm_head", *RANDOM_FEW
    )
    assert result.returncode == 0, result.stderr
    nodes = [node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph]
    assert nodes.count("MatMulW8A8") == 1
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [entry["weight_bits"] for entry in plan["linears"]].count(8) == 1


@pytest.mark.slow
def test_a_target_that_stores_more_than_the_budget_says_so(tmp_path):
    done = command(
        "convert", MODEL, "-o", tmp_path / "out", "--target", "matmulnbits", "--target-bits",
        "4.18", "--weight-method", "rtn", *RANDOM_FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "target matmulnbits stores 4.36 bits per weight, above --target-bits 4.18" in done.stdout


def test_run_writes_text(converted):
    result = command(
        "run", converted[0] / "custom", "--prompt", "Once upon a time", "--max-new-tokens", 20
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) >= 8 and "tokens/s" in result.stderr


def test_every_forced_kernel_writes_the_same_text(converted):
    texts = set()
    for kernel in ("", "amx", "avx512vnni", "avxvnni", "avx2", "scalar"):
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
    plan["linears"][1].update(scheme="skip")
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(plan))
    result = command("convert", MODEL, "-o", tmp_path / "out", "--plan", edited, *RANDOM_FEW, "-q")
    assert result.returncode == 0, result.stderr
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "model.onnx").graph}
    first, second = (entry["name"] for entry in plan["linears"][:2])
    assert nodes[first].attributes["activation"].value == "per_token"
    assert nodes[second].op_type == "MatMul"


@pytest.mark.slow
def test_statistics_are_saved_and_reused(tmp_path):
    stats = tmp_path / "stats.npz"
    first = command("convert", MODEL, "--dry-run", "--stats", stats, *RANDOM_FEW)
    assert first.returncode == 0 and stats.exists()
    again = command("convert", MODEL, "--dry-run", "--stats", stats, *RANDOM_FEW)
    assert "calibration  not run" in again.stdout
    spoken = ("calibration", "warning")  # of the samples, which the second run does not see
    strip = [line for line in first.stdout.splitlines() if not line.startswith(spoken)]
    assert strip == [line for line in again.stdout.splitlines() if "calibration  " not in line]


@pytest.mark.slow
def test_a_plan_says_how_weights_and_embeddings_are_rounded(tmp_path):
    """Replayed by the default recipe, the plan of another one gives the same weights."""
    first, again = tmp_path / "first", tmp_path / "again"
    options = ("--calibration", "random", *RANDOM_FEW)
    done = command("convert", MODEL, "-o", first, "--recipe", "paper", *options)
    assert done.returncode == 0, done.stderr
    plan = json.loads((first / "plan.json").read_text())
    assert (plan["weight_method"], plan["embedding_bits"]) == ("rtn", 32)
    done = command("convert", MODEL, "-o", again, "--plan", first / "plan.json", *options)
    assert done.returncode == 0, done.stderr
    weights = []
    for folder in (first, again):
        graph = ir.load(folder / "model.onnx").graph
        weights.append({name: v.const_value.numpy() for name, v in graph.initializers.items()})
    assert set(weights[0]) == set(weights[1])
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)


@pytest.mark.slow
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


@pytest.mark.slow
def test_input_is_never_changed(tmp_path):
    before = fingerprint(MODEL)
    done = command("convert", MODEL, "-o", tmp_path / "out", "--target", "all", *RANDOM_FEW)
    assert done.returncode == 0, done.stderr
    assert fingerprint(MODEL) == before


@pytest.mark.slow
@pytest.mark.process
def test_convert_goes_on_when_nobody_reads_its_output(tmp_path):
    arguments = [sys.executable, "-m", "fptq_onnx", "convert", str(MODEL), "-o", "out", *RANDOM_FEW]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=tmp_path)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.process
def test_closed_standard_output(tmp_path):
    script = '"$0" -m fptq_onnx convert "$1" -o out --max-samples 2 --max-seq-len 32 >&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, MODEL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.json").is_file()


def test_a_tokenizer_from_elsewhere_for_run(converted, tmp_path):
    folder = shutil.copytree(converted[0] / "matmulnbits", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    result = command(
        "run", folder, "--prompt", "Once", "--max-new-tokens", "3", "--tokenizer", MODEL
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Once")
