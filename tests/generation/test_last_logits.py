"""Generation's cut: the same last row of logits, from fewer rows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from support.tiny_graphs import build, weight

from fptq_onnx.generation.kv.last_logits import keep_last_logits


def logits(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    result: NDArray[np.float32] = session.run(["logits"], {"x": x})[0]
    return result


def block(rng: np.random.Generator, *, extra: str = "") -> onnx.ModelProto:
    """A token mixer (a mean over positions), then a residual MLP, a norm and the head."""
    text = f"""m (float[batch, sequence, 8] x)
        => (float[batch, sequence, 12] logits{", float[batch, sequence, 16] up" if extra else ""})
    <float[batch, sequence, 8] r, float[batch, 1, 8] mean, float[batch, sequence, 16] up,
     float[batch, sequence, 16] s, float[batch, sequence, 8] d, float[batch, sequence, 8] n>
    {{
        axis = Constant<value_ints = [1]>()
        mean = ReduceMean(x, axis)
        r = Add(x, mean)
        up = MatMul(r, w_up)
        s = Sigmoid(up)
        d = MatMul(s, w_down)
        n, none, none2, sum = com.microsoft.SkipSimplifiedLayerNormalization(r, d, gain)
        logits = MatMul(n, w_head)
    }}"""
    arrays = {
        "w_up": weight(rng, 8, 16), "w_down": weight(rng, 16, 8), "gain": weight(rng, 8),
        "w_head": weight(rng, 8, 12),
    }  # fmt: skip
    return ir.to_proto(build(text, arrays, microsoft=True))


def test_the_last_row_is_the_same_and_the_mixer_sees_all(rng: np.random.Generator) -> None:
    model = block(rng)
    x = rng.standard_normal((2, 5, 8), np.float32)
    before = logits(model, x)
    assert keep_last_logits(model.graph, "logits") == 6  # all but the mean
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 1
    after = logits(model, x)
    assert after.shape == (2, 1, 12)
    # The same sums over 8 or 16 terms, perhaps in another order.
    np.testing.assert_allclose(after[:, 0], before[:, -1], rtol=1e-5, atol=1e-6)


def test_what_goes_elsewhere_too_is_computed_for_all(rng: np.random.Generator) -> None:
    model = block(rng, extra="up")
    x = rng.standard_normal((1, 5, 8), np.float32)
    assert keep_last_logits(model.graph, "logits") == 4  # neither the mixer's sum nor `up`
    session = ort.InferenceSession(model.SerializeToString())
    last, up = session.run(["logits", "up"], {"x": x})
    assert (last.shape, up.shape) == ((1, 1, 12), (1, 5, 16))


def test_a_table_of_positions_is_not_cut(rng: np.random.Generator) -> None:
    text = """m (float[batch, sequence, 8] x) => (float[batch, sequence, 12] logits)
    { h = MatMul(x, w)  logits = Add(h, table) }"""
    arrays = {"w": weight(rng, 8, 12), "table": weight(rng, 5, 12)}
    model = ir.to_proto(build(text, arrays, microsoft=True))
    assert keep_last_logits(model.graph, "logits") == 0


def test_without_shapes_only_the_head_is_certain(rng: np.random.Generator) -> None:
    text = """m (float[batch, sequence, 8] x) => (float[batch, sequence, 12] logits)
    { a = MatMul(x, w)  b = Sigmoid(a)  c = Mul(a, b)  logits = MatMul(c, w_head) }"""
    arrays = {"w": weight(rng, 8, 8), "w_head": weight(rng, 8, 12)}
    model = ir.to_proto(build(text, arrays, microsoft=True))
    del model.graph.value_info[:]
    x = rng.standard_normal((1, 5, 8), np.float32)
    before = logits(model, x)
    assert keep_last_logits(model.graph, "logits") == 1
    np.testing.assert_allclose(logits(model, x)[0, 0], before[0, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["logits", "elsewhere"])
def test_logits_that_are_not_rows_are_left_alone(rng: np.random.Generator, name: str) -> None:
    text = """m (float[batch, 8] x) => (float[batch, 12] logits) { logits = MatMul(x, w) }"""
    model = ir.to_proto(build(text, {"w": weight(rng, 8, 12)}))
    assert keep_last_logits(model.graph, name) == 0


def test_the_order_of_nodes_stays_one_that_can_be_run(rng: np.random.Generator) -> None:
    """Two values enter: one made in the middle, the other an input, cut before the first node."""
    text = """m (float[batch, sequence, 8] x, float[batch, sequence, 8] residual)
        => (float[batch, sequence, 12] logits)
    <float[batch, sequence, 8] mixed, float[batch, 1, 8] mean, float[batch, sequence, 8] sum>
    {
        axis = Constant<value_ints = [1]>()
        mean = ReduceMean(x, axis)
        mixed = Sub(x, mean)
        sum = Add(mixed, residual)
        logits = MatMul(sum, w_head)
    }"""
    model = ir.to_proto(build(text, {"w_head": weight(rng, 8, 12)}))
    feeds = {name: rng.standard_normal((2, 5, 8), np.float32) for name in ("x", "residual")}
    before = ort.InferenceSession(model.SerializeToString()).run(["logits"], feeds)[0]
    assert keep_last_logits(model.graph, "logits") == 3
    onnx.checker.check_model(model)  # each value is made before it is read
    cuts = [node for node in model.graph.node if node.op_type == "Gather"]
    assert sorted(node.input[0] for node in cuts) == ["mean", "residual", "x"]
    after = ort.InferenceSession(model.SerializeToString()).run(["logits"], feeds)[0]
    np.testing.assert_allclose(after[:, 0], before[:, -1], rtol=1e-5, atol=1e-6)


def test_what_a_branch_reads_is_computed_for_all(rng: np.random.Generator) -> None:
    text = """m (bool c, float[batch, sequence, 8] x)
        => (float[batch, sequence, 12] logits, float[batch, sequence, 8] other)
    <float[batch, sequence, 8] r>
    {
        r = Relu(x)
        logits = MatMul(r, w_head)
        other = If(c) <then_branch = t () => (u) { u = Abs(r) },
                       else_branch = e () => (v) { v = Neg(x) }>
    }"""
    model = ir.to_proto(build(text, {"w_head": weight(rng, 8, 12)}))
    assert keep_last_logits(model.graph, "logits") == 1  # the head, and not what `t` reads
    (cut,) = [node for node in model.graph.node if node.op_type == "Gather"]
    assert cut.input[0] == "r"


def test_the_last_axis_of_norms_alone(rng: np.random.Generator) -> None:
    for axis, cut in ((-1, 2), (2, 2), (1, 1)):
        text = f"""m (float[batch, 5, 8] x) => (float[batch, 5, 12] logits)
        <float[batch, 5, 8] n>
        {{ n = LayerNormalization<axis = {axis}>(x, gain)  logits = MatMul(n, w_head) }}"""
        gain = weight(rng, 8) if axis != 1 else weight(rng, 5, 8)
        model = ir.to_proto(build(text, {"gain": gain, "w_head": weight(rng, 8, 12)}))
        assert keep_last_logits(model.graph, "logits") == cut
