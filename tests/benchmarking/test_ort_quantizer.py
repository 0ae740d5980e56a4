"""The rival of comparisons: every linear quantized, and nothing said on the way."""

import logging
import shutil

import onnx_ir as ir
import pytest
from support.command_line import MODEL

from fptq_onnx.benchmarking.ort_quantizer import quantize_stock
from fptq_onnx.errors import FptqError


@pytest.mark.parametrize(("block", "least", "most"), [(32, 5.0, 5.2), (128, 4.2, 4.5)])
def test_all_linears_are_quantized_though_their_weights_are_behind_casts(
    tmp_path, block, least, most
):
    bits = quantize_stock(MODEL, tmp_path, block)
    nodes = [node for node in ir.load(tmp_path / "model.onnx").graph]
    found = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(found) == 31 and "MatMul" not in {node.op_type for node in nodes}
    assert {node.attributes["block_size"].as_int() for node in found} == {block}
    assert {node.attributes["accuracy_level"].as_int() for node in found} == {4}
    assert least < bits < most  # 4 bits, a float32 scale per block, padding
    assert (tmp_path / "tokenizer.json").exists()


def test_the_rival_leaves_logging_alone(tmp_path, capsys):
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    quantize_stock(MODEL, tmp_path, 32)
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
    assert capsys.readouterr().err == ""


def test_no_model(tmp_path):
    shutil.copy(MODEL / "tokenizer.json", tmp_path)
    with pytest.raises(FptqError):
        quantize_stock(tmp_path, tmp_path, 32)
