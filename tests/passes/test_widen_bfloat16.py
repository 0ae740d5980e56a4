"""Graphs that compute in bfloat16 run in float32, with the same weights."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from support.saved_models import saved
from support.tiny_graphs import build, run, weight

from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.widen_bfloat16 import narrow_interface, widen_bfloat16


def bfloat16_graph(rng: np.random.Generator) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    w, g = weight(rng, 4, 3, dtype="bfloat16"), weight(rng, 4, dtype="bfloat16")
    text = (
        "<ir_version: 8, opset_import: ['' : 18]>".replace("'", '"')
        + "g (bfloat16[A, 4] x, bool c) => (bfloat16[A, 3] y) {"
        " h = Mul(x, g) f = Cast<to = 1>(h) r = Relu(f) b = Cast<to = 16>(r)"
        " t = Transpose(W) w = Transpose(t)"
        " p = MatMul(b, w)"
        " y = If(c) <then_branch = u () => (bfloat16[A, 3] i) { i = Add(p, p) },"
        " else_branch = e () => (bfloat16[A, 3] j) { j = Identity(p) }> }"
    )
    tensors = [
        ir.Tensor(array, dtype=ir.DataType.BFLOAT16, name=name)
        for name, array in (("W", w), ("g", g))
    ]
    return ir.from_onnx_text(text, initializers=tensors), w, g


def test_it_computes_in_float32_what_the_bfloat16_weights_say(rng: np.random.Generator) -> None:
    model, w, g = bfloat16_graph(rng)
    assert widen_bfloat16(model).changed
    x = rng.standard_normal((5, 4)).astype(np.float32)
    got = run(model, {"x": x, "c": np.array(True)})["y"]
    expected = 2 * np.maximum(x * g.astype(np.float32), 0) @ w.astype(np.float32)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # The weights themselves are not copied, and the linear is found behind what was added.
    assert model.graph.initializers["W"].const_value.dtype == ir.DataType.BFLOAT16
    (linear,) = find_linears(model).linears
    assert linear.weight.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(linear.weight.load(), w.astype(np.float32))
    assert not widen_bfloat16(model).changed


def test_constants_and_outputs_of_a_constant_value(rng: np.random.Generator) -> None:
    half = ir.Tensor(np.array(0.5, ml_dtypes.bfloat16), dtype=ir.DataType.BFLOAT16)
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        "g (bfloat16[A] x) => (bfloat16[A] y) { y = Mul(x, k) }"
    )
    node = ir.node("Constant", [], {"value": half})
    node.outputs[0].name = "half"
    mul = next(iter(model.graph))
    model.graph.insert_before(mul, node)
    mul.replace_input_with(1, node.outputs[0])
    assert widen_bfloat16(model).changed
    np.testing.assert_array_equal(run(model, {"x": np.ones(3, np.float32)})["y"], [0.5] * 3)


def test_weights_only_stored_in_bfloat16_are_left_alone(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) { w = Cast<to = 1>(W) y = MatMul(x, w) }",
        {"W": weight(rng, 4, 3, dtype="bfloat16")},
    )
    before = [node.op_type for node in model.graph]
    assert not widen_bfloat16(model).changed
    assert [node.op_type for node in model.graph] == before


def test_a_conversion_says_that_callers_must_feed_float32(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """And takes samples of the type that the model had."""
    text = "g (bfloat16[A, 64] x) => (bfloat16[A, 48] y) { y = MatMul(x, W) }"
    tensor = ir.Tensor(weight(rng, 64, 48, dtype="bfloat16"), dtype=ir.DataType.BFLOAT16, name="W")
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]>' + text, initializers=[tensor]
    )
    samples = [{"x": rng.standard_normal((9, 64)).astype(ml_dtypes.bfloat16)} for _ in range(60)]
    said: list[str] = []
    file = saved(tmp_path / "model", model)
    done = convert(file, tmp_path / "out", samples=samples, say=said.append)
    (note,) = done.reports["custom"].notes
    assert note.startswith("inputs and outputs of type bfloat16 are float32 in the result (x, y)")
    assert f"note         {note}" in said
    written = ir.load(tmp_path / "out" / "model.onnx").graph
    assert {value.dtype for value in (*written.inputs, *written.outputs)} == {ir.DataType.FLOAT}


def test_nothing_is_said_where_weights_alone_are_bfloat16(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) { w = Cast<to = 1>(W) y = MatMul(x, w) }",
        {"W": weight(rng, 4, 3, dtype="bfloat16")},
    )
    assert narrow_interface(model) == ()
