"""The derived matmulnbits model against the one emitted from the same quantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import Quantized, quantized, spelled
from support.tiny_graphs import build, op_counts, run, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.passes.emit_matmul_nbits import emit_matmul_nbits
from fptq_onnx.passes.fuse_gated_mlp import fuse_gated_mlp
from fptq_onnx.passes.fuse_shared_inputs import fuse_shared_inputs
from fptq_onnx.passes.make_portable import make_portable


def derived(made: Quantized, *, fuse: bool = True) -> ir.Model:
    model = made.emitted(emit_custom)
    if fuse:
        fuse_shared_inputs(model)
        fuse_gated_mlp(model)
    make_portable(model)
    assert "fptq" not in model.opset_imports
    assert not [node for node in model.graph if node.domain == "fptq"]
    return model


def same_tensors(one: ir.Model, other: ir.Model) -> None:
    """The same initializers, bit by bit; but for biases, whose place differs."""
    names = {name for name in other.graph.initializers if not name.startswith("b")}
    assert {name for name in one.graph.initializers if not name.endswith(".bias")} == names
    for name in names:
        left = one.graph.initializers[name].const_value
        right = other.graph.initializers[name].const_value
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left.numpy(), right.numpy(), err_msg=name)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [32, 128, -1])
@pytest.mark.parametrize("variant", ["matmul", "matmul_bias"])
def test_same_as_emitted(
    rng: np.random.Generator, tmp_path: Path, variant: str, block_size: int, symmetric: bool
) -> None:
    model = spelled(rng, variant, 172, 70)
    made = quantized(model, tmp_path, block_size=block_size, symmetric=symmetric)
    one, other = derived(made), made.emitted(emit_matmul_nbits)
    same_tensors(one, other)
    assert op_counts(one) == op_counts(other)
    x = weight(rng, 5, 172)
    np.testing.assert_array_equal(run(one, {"x": x})["y"], run(other, {"x": x})["y"])


@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits(rng: np.random.Generator, tmp_path: Path, symmetric: bool) -> None:
    made = quantized(
        spelled(rng, "matmul", 72, 70), tmp_path, int8_layers=("y",), symmetric=symmetric
    )
    one, other = derived(made), made.emitted(emit_matmul_nbits)
    assert "y.W8" in one.graph.initializers
    same_tensors(one, other)


def test_float16(rng: np.random.Generator, tmp_path: Path) -> None:
    made = quantized(spelled(rng, "matmul_bias", 40, 6, dtype="float16"), tmp_path)
    one, other = derived(made), made.emitted(emit_matmul_nbits)
    same_tensors(one, other)
    x = weight(rng, 5, 40, dtype="float16")
    np.testing.assert_array_equal(run(one, {"x": x})["y"], run(other, {"x": x})["y"])


QKV = (
    "g (float[A, 40] x) => (float[A, 70] q, float[A, 6] k, float[A, 64] v) {"
    " q = MatMul(x, Wq) p = MatMul(x, Wk) k = Add(p, b) v = MatMul(x, Wv) }"
)


@pytest.mark.parametrize("symmetric", [True, False])
def test_linears_of_one_input_come_apart(
    rng: np.random.Generator, tmp_path: Path, symmetric: bool
) -> None:
    """70 columns end inside a panel; only one of the three has a bias."""
    weights = {name: weight(rng, 40, n) for name, n in (("Wq", 70), ("Wk", 6), ("Wv", 64))}
    made = quantized(build(QKV, {**weights, "b": weight(rng, 6)}), tmp_path, symmetric=symmetric)
    one, other = derived(made), made.emitted(emit_matmul_nbits)
    assert op_counts(one) == op_counts(other) == {"MatMulNBits": 3, "Add": 1}
    same_tensors(one, other)
    x = weight(rng, 5, 40)
    for name, expected in run(other, {"x": x}).items():
        np.testing.assert_array_equal(run(one, {"x": x})[name], expected)


@pytest.mark.parametrize("order", ["g = MatMul(x, Wg) u = MatMul(x, Wu)", "swapped"])
@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize(
    "act", ["s = Sigmoid(g) a = Mul(g, s)", "a = com.microsoft.FastGelu(g)"], ids=["silu", "gelu"]
)
def test_a_gate_comes_out_again(
    rng: np.random.Generator, tmp_path: Path, act: str, opset: int, order: str
) -> None:
    text = order if order != "swapped" else "u = MatMul(x, Wu) g = MatMul(x, Wg)"
    body = f"g_ (float[A, 24] x) => (float[A, 70] y) {{ {text} {act} y = Mul(a, u) }}"
    weights = {"Wg": weight(rng, 24, 70), "Wu": weight(rng, 24, 70)}
    made = quantized(build(body, weights, opset=opset, ir_version=10, microsoft=True), tmp_path)
    x = rng.uniform(-1, 1, (9, 24)).astype(np.float32)
    expected = run(made.emitted(emit_matmul_nbits), {"x": x})["y"]
    # Gelu and FastGelu are computed by different polynomials of ONNX Runtime.
    np.testing.assert_allclose(run(derived(made), {"x": x})["y"], expected, rtol=2e-5, atol=2e-6)
    assert np.abs(expected).max() > 0.05


def changed(made: Quantized, name: str, value: object) -> ir.Model:
    model = made.emitted(emit_custom)
    (node,) = model.graph
    node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return model


@pytest.mark.parametrize(("name", "value"), [("layout", 2), ("gate", "relu"), ("rotary", 1)])
def test_refuses_what_it_does_not_know(
    rng: np.random.Generator, tmp_path: Path, name: str, value: object
) -> None:
    made = quantized(spelled(rng, "matmul", 40, 6), tmp_path)
    with pytest.raises(FptqError, match=r"MatMulW4A8 \(y\) cannot be turned .* --no-fallback"):
        make_portable(changed(made, name, value))


def test_refuses_another_op_of_ours(rng: np.random.Generator, tmp_path: Path) -> None:
    model = quantized(spelled(rng, "matmul", 40, 6), tmp_path).emitted(emit_custom)
    model.graph.node(0).op_type = "Attention"
    with pytest.raises(FptqError, match="the op Attention"):
        make_portable(model)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_that_the_exporter_left_out(
    rng: np.random.Generator, tmp_path: Path, dtype: str
) -> None:
    """Found upstream, through ops with inputs of other types, and where a Cast says it."""
    kind, number = ("float", 1) if dtype == "float32" else ("float16", 10)
    other = 1 if number == 10 else 10
    body = (
        f"g (bool[A, 40] c, double[A, 40] x) => ({kind}[A, 6] y) {{ d = Cast<to = {number}>(x)"
        f" e = Neg(d) w = Where(c, d, e) h = MatMul(w, W1) y = MatMul(h, W2)"
        f" u = Cast<to = {other}>(x) }}"
    )
    weights = {"W1": weight(rng, 40, 70, dtype=dtype), "W2": weight(rng, 70, 6, dtype=dtype)}
    made = quantized(build(body, weights, opset=21, ir_version=10), tmp_path)
    model, expected = made.emitted(emit_custom), made.emitted(emit_matmul_nbits)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None
    make_portable(model)
    same_tensors(model, expected)


def test_a_type_that_nobody_says(rng: np.random.Generator, tmp_path: Path) -> None:
    model = quantized(spelled(rng, "matmul", 40, 6), tmp_path).emitted(emit_custom)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = None
    with pytest.raises(FptqError, match=r"the type of the input of y is not known.*custom,mat"):
        make_portable(model)
