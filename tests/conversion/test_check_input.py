"""What ONNX Runtime refuses, and what is no tensor, is refused before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.command_line import refused
from support.saved_models import linear_model, saved
from support.tiny_graphs import build, weight

from fptq_onnx.conversion.check_input import check_accepted
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.evaluate import open_decoder
from fptq_onnx.model_io.load import load_model
from fptq_onnx.runtime.session import open_session

HEADS = {
    "shape inference": "h = MatMul(y, W2) z = Gemm(h, V)",  # of rank 3
    "a missing op": "h = MatMul(y, W2) z = NoSuchOp(h)",
    "a wrong attribute": "h = MatMul(y, W2) z = Softmax<axis = 9>(h)",
    "no kernel": "h = MatMul(y, W2) z = com.microsoft.LongformerAttention(h)",
}


@pytest.fixture(params=HEADS)
def broken(request, tmp_path) -> Path:
    rng = np.random.default_rng(0)
    model = build(
        f"g (float[A, B, 64] x) => (z) {{ y = MatMul(x, W1) {HEADS[request.param]} }}",
        {"W1": weight(rng, 64, 48), "W2": weight(rng, 48, 64)}
        | ({"V": weight(rng, 64, 8)} if "V" in HEADS[request.param] else {}),
    )
    file = saved(tmp_path / "m", model)
    with pytest.raises(Exception, match=r"."):
        ort.InferenceSession(str(file))
    return file


def test_before_calibration(broken, tmp_path):
    read = []

    def samples():
        read.append(1)
        yield {"x": np.zeros((1, 2, 64), np.float32)}

    said: list[str] = []
    with pytest.raises(FptqError, match=r"model\.onnx: ONNX Runtime cannot run the model: .*"):
        convert(broken, tmp_path / "o", samples=samples(), say=said.append)
    assert not read and not said
    assert not (tmp_path / "o").exists()


def test_by_the_commands(broken, tmp_path):
    np.savez(tmp_path / "c.npz", x=np.ones((1, 2, 64), np.float32))
    for words in (["convert", "-o", tmp_path / "o"], ["inspect"], ["inspect", "--errors"]):
        refused(
            words[0], broken, *words[1:], "--calibration", tmp_path / "c.npz",
            saying="the model itself is at fault: export it again",
        )  # fmt: skip


@pytest.mark.parametrize("external", [None, 256])
def test_good_models_are_accepted_and_not_changed(tmp_path, external):
    rng = np.random.default_rng(0)
    large = build(
        "g (float[A, 256] x) => (float[A, 256] z) { y = MatMul(x, W) z = Relu(y) }",
        {"W": weight(rng, 256, 256)},  # hidden from the check where it is inside
    )
    loaded = load_model(saved(tmp_path, large, external=external))
    check_accepted(loaded)
    tensor = loaded.model.graph.initializers["W"].const_value
    assert tensor.nbytes == 256 * 256 * 4
    assert [value.name for value in loaded.model.graph.inputs] == ["x"]


def listed_as_inputs(ir_version: int) -> onnx.ModelProto:
    """linear_model with every initializer among the inputs."""
    proto = ir.to_proto(linear_model())
    proto.ir_version = ir_version
    for tensor in proto.graph.initializer:
        kind = proto.graph.input.add(name=tensor.name).type.tensor_type
        kind.elem_type = tensor.data_type
        for size in tensor.dims:
            kind.shape.dim.add(dim_value=size)
    return proto


@pytest.mark.parametrize("ir_version", [3, 8, 10])
def test_weights_that_are_inputs_too(tmp_path, ir_version):
    file = tmp_path / "model.onnx"
    file.write_bytes(listed_as_inputs(ir_version).SerializeToString())
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    said: list[str] = []
    out = tmp_path / "o"
    result = convert(file, out, samples=[{"x": x}], verify_samples=1, say=said.append)
    note = "3 weights were inputs with a default value (W1, W2, b): constants in the result"
    assert any(line.startswith(f"note         {note}") for line in said)
    assert any(text.startswith(note) for text in result.reports["custom"].notes)
    written = onnx.load(out / "model.onnx", load_external_data=False)
    assert [value.name for value in written.graph.input] == ["x"]
    assert written.ir_version >= 4
    assert result.reports["custom"].linears == 2
    (given,) = open_session(out / "model.onnx", threads=1).run(None, {"x": x})
    (wanted,) = open_session(file, threads=1).run(None, {"x": x})
    assert np.linalg.norm(given - wanted) < 0.2 * np.linalg.norm(wanted)


TYPES = {
    "a sequence": "seq(float[n, 64])",
    "optional": "optional(seq(float[n, 64]))",
    "a map": "map(int64, float[n, 64])",
    "sparse": "sparse_tensor(float[n, 64])",
}


def value_of(kind: str) -> onnx.ValueInfoProto:
    text = f"agraph ({TYPES[kind]} states) => (float y) {{ y = Constant<value = float {{1}}>() }}"
    return onnx.parser.parse_graph(text).input[0]


@pytest.mark.parametrize("role", ["input", "output"])
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_no_tensor(tmp_path, role, kind):
    file = saved(tmp_path, external=None)
    proto = onnx.load(file)
    value = value_of(kind)
    (proto.graph.input if role == "input" else proto.graph.output).append(value)
    onnx.save(proto, file)
    with pytest.raises(FptqError) as caught:
        load_model(file)
    said = str(caught.value)
    assert f"has the {role} 'states', which is {kind} and not a tensor: export the model" in said
    assert ("one for each entry" in said) == (role == "input" and kind == "a sequence")
    assert ("or without this input" in said) == (role == "input" and kind == "optional")


def test_a_sequence_is_told_by_eval_too(tmp_path):
    """It opens the file in ONNX Runtime alone."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
        g (seq(float[N]) parts) => (float[M] y) { y = ConcatFromSequence<axis = 0>(parts) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(FptqError, match="has the input 'parts', which is a sequence and not"):
        open_decoder(tmp_path, threads=1)
