"""Models without a linear are refused, and what they have instead is named."""

import numpy as np
import onnx
from support.command_line import refused


def test_no_linears(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    refused("convert", tmp_path / "relu.onnx", "-o", tmp_path / "o", saying="no linear layer")


def test_no_linears_but_in_a_branch(tmp_path):
    """A merged decoder: where the parts are that can be converted."""
    text = """
        <ir_version: 8, opset_import: ["" : 18]> g (bool first, float[2, 4] x) => (float[2, 4] y)
        <float[4, 4] W = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
        {
            y = If (first) <
                then_branch = a () => (float[2, 4] a1) { a1 = MatMul(x, W) },
                else_branch = b () => (float[2, 4] b1) { b1 = MatMul(x, W) }
            >
        }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "merged.onnx")
    refused(
        "convert", tmp_path / "merged.onnx", "-o", tmp_path / "o",
        saying="decoder_with_past_model.onnx",
    )  # fmt: skip


def test_no_linears_but_convolutions(tmp_path):
    """What there is instead is named, with the reason."""
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1, 4, 8] x, float[4, 2, 1] w)'
        " => (float[1, 4, 6] y) {a = Conv<group = 2>(x, w) k = Constant<value = float[4, 4, 3]"
        " {" + ", ".join(["0.5"] * 48) + "}>() y = Conv(a, k)}"
    )
    model = onnx.parser.parse_model(text)
    weight = model.graph.input.pop()
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 2, 1), np.float32), weight.name)
    )
    onnx.save(model, tmp_path / "conv.onnx")
    for saying in ("1 left alone: it is a 1x1 convolution in 2 groups", "1 convolutions, which"):
        refused("convert", tmp_path / "conv.onnx", "-o", tmp_path / "o", saying=saying)
