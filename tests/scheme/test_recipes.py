"""Each recipe's settings, and what they make of a model."""

import json
import platform
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.command_line import MODEL, RANDOM_FEW, command

from fptq_onnx.errors import FptqError
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.recipes import RECIPES, find_recipe


def test_the_default_recipe_is_the_default_config():
    assert find_recipe("fptq").config() == Config()
    assert find_recipe("paper").config() == PAPER


def test_what_the_user_chose_comes_first():
    config = find_recipe("w8a8").config(weight_method="mse", block_size=64)
    assert (config.weight_method, config.block_size, config.weight_bits) == ("mse", 64, 8)


def test_an_unknown_recipe_is_told_the_known_ones():
    with pytest.raises(FptqError, match="fptq, paper, w4a8-static, w8a8, smoothquant, gptq, fp16"):
        find_recipe("awq")
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


CPU = Path("/proc/cpuinfo")
SATURATES = platform.machine() in ("x86_64", "AMD64") and not (
    CPU.is_file() and "vnni" in CPU.read_text()
)

# Ops that must be there, ops that must not, bits per weight, and a bound on the KL: about twice
# what was measured (fp16 1e-6, smoothquant 0.002, w8a8 0.004, gptq 0.008, w4a8-static 0.02).
EXPECTED = {
    "w8a8": ({"QuantizeLinear", "DequantizeLinear"}, {"MatMulNBits", "MatMulW4A8"}, 8.1, 0.008),
    "smoothquant": ({"QuantizeLinear", "DequantizeLinear"}, {"MatMulW4A8", "Abs"}, 8.1, 0.004),
    "gptq": ({"MatMulNBits"}, {"QuantizeLinear", "MatMul", "MatMulW4A8"}, 4.36, 0.02),
    "fp16": ({"MatMul"}, {"QuantizeLinear", "MatMulNBits", "MatMulW4A8"}, 16.0, 1e-4),
    "w4a8-static": ({"MatMulW4A8"}, {"MatMul", "QuantizeLinear"}, 4.17, 0.04),
}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_writes_what_it_says(name, tmp_path):
    present, absent, bits, kl = EXPECTED[name]
    arguments = ("convert", MODEL, "--recipe", name, "-o", tmp_path / "out", *RANDOM_FEW)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    ops = {node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph}
    assert present <= ops and not absent & ops
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["bits_per_weight"] == pytest.approx(bits, abs=0.06)
    # Without VNNI ONNX Runtime's int8 products saturate on x86: smoothquant had 0.0055 then.
    assert report["verification"]["kl"] < (2 * kl if SATURATES and 8 < bits < 9 else kl)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w8a8", "smoothquant"])
def test_stock_onnxruntime_runs_all_8_bit_linears_as_integer_products(name, tmp_path):
    arguments = ("--recipe", name, "--verify-samples", "0", "-o", tmp_path / "out", *RANDOM_FEW)
    assert command("convert", MODEL, *arguments).returncode == 0
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(tmp_path / "out" / "model.onnx", options)
    ops = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    assert ops.count("MatMulIntegerToFloat") == 31 and "MatMul" not in ops


@pytest.mark.slow
def test_gptq_leaves_activations_in_float(tmp_path):
    arguments = ("--recipe", "gptq", "-o", tmp_path / "out", *RANDOM_FEW)
    assert command("convert", MODEL, *arguments).returncode == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["linears"]
    assert {entry["scheme"] for entry in plan} == {"weight_only"}
    levels = {
        node.attributes["accuracy_level"].as_int()
        for node in ir.load(tmp_path / "out" / "model.onnx").graph
        if node.op_type == "MatMulNBits"
    }
    assert levels == {1}
    refused = command(
        "convert", MODEL, "--recipe", "gptq", "--target", "custom", "-o", tmp_path / "no",
        *RANDOM_FEW,
    )  # fmt: skip
    assert refused.returncode == 2 and "write --target matmulnbits" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "option",
    ["--target qdq", "--v0 0", "--target-bits 4.6", "--int8-layers head", "--no-fuse", "--dry-run"],
)
def test_fp16_refuses_what_it_has_no_use_for(tmp_path, option):
    given = option.split()
    done = command("convert", MODEL, "--recipe", "fp16", *given, "-o", tmp_path / "out")
    assert done.returncode == 2 and f"leave {given[0]} out" in done.stderr
    assert not (tmp_path / "out").exists()
