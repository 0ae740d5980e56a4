from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import quantized
from support.tiny_graphs import build, run, weight

from fptq_onnx.numerics.panels import pack_codes, pack_group_values
from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.passes.fuse_shared_inputs import LINEARS, fuse_shared_inputs

QKV = (
    "g (float[A, 40] x) => (float[A, 70] q, float[A, 6] k, float[A, 64] v)"
    " { q = MatMul(x, Wq) s = MatMul(x, Wk) k = Add(s, bk) v = MatMul(x, Wv) }"
)


def qkv_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"Wq": (40, 70), "Wk": (40, 6), "Wv": (40, 64), "bk": (6,)}
    return {name: weight(rng, *shape) for name, shape in shapes.items()}


def nodes_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == "fptq"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("w8", [(), (".",)])
@pytest.mark.parametrize("scheme", ["static", "per_token"])
def test_three_linears_of_one_input(
    rng: np.random.Generator,
    tmp_path: Path,
    symmetric: bool,
    w8: tuple[str, ...],
    scheme: str,
) -> None:
    model = build(QKV, qkv_weights(rng), opset=21, ir_version=10)
    made = quantized(model, tmp_path, schemes=[scheme] * 3, symmetric=symmetric, w8=w8)
    apart, fused = made.emitted(emit_custom), made.emitted(emit_custom)
    assert fuse_shared_inputs(fused).changed == 1
    (node,) = nodes_of(fused)
    assert node.attributes["N"].as_ints() == (70, 6, 64)
    assert json.loads(node.metadata_props[LINEARS]) == [entry.name for entry in made.plan.linears]
    assert [value.name for value in node.outputs] == ["q", "k", "v"]
    assert [value.name for value in fused.graph.outputs] == ["q", "k", "v"]
    # What is in the file: the parts one after the other, whole panels each.
    codes = np.concatenate([pack_codes(made.weights(i).codes, 8 if w8 else 4) for i in range(3)])
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), codes)
    scales = np.concatenate([pack_group_values(made.weights(i).scales) for i in range(3)])
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), scales)
    bias = node.inputs[4].const_value.numpy()
    np.testing.assert_array_equal(bias[70:76], made.model.graph.initializers["bk"].const_value)
    assert not bias[:70].any() and not bias[76:].any()
    names = set(fused.graph.initializers)
    assert len(names) == 4, names
    x = rng.standard_normal((5, 40)).astype(np.float32)
    separate, together = run(apart, {"x": x}), run(fused, {"x": x})
    for name in ("q", "k", "v"):
        np.testing.assert_array_equal(together[name], separate[name])


def test_scales_of_two_types_become_float32(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = qkv_weights(rng)
    weights["Wk"][:32, 1] *= np.float32(1e-6)  # its scale is below those of float16
    model = build(QKV, weights, opset=21, ir_version=10)
    made = quantized(model, tmp_path, schemes=["per_token"] * 3, block_size=32)
    apart, fused = made.emitted(emit_custom), made.emitted(emit_custom)
    types = [node.inputs[2].dtype for node in nodes_of(apart)]
    assert types == [ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT16]
    assert fuse_shared_inputs(fused).changed == 1
    (node,) = nodes_of(fused)
    assert node.inputs[2].dtype == node.inputs[2].const_value.dtype == ir.DataType.FLOAT
    x = rng.standard_normal((5, 40)).astype(np.float32)
    separate, together = run(apart, {"x": x}), run(fused, {"x": x})
    for name in ("q", "k", "v"):
        np.testing.assert_array_equal(together[name], separate[name])


def test_linears_that_differ_stay_apart(rng: np.random.Generator, tmp_path: Path) -> None:
    model = build(QKV, qkv_weights(rng), opset=21, ir_version=10)
    made = quantized(model, tmp_path, schemes=["static", "per_token", "static"])
    emitted = made.emitted(emit_custom)
    assert fuse_shared_inputs(emitted).changed == 1
    assert sorted(len(node.outputs) for node in nodes_of(emitted)) == [1, 2]
    model = build(QKV, qkv_weights(rng), opset=21, ir_version=10)
    emitted = quantized(model, tmp_path / "w8", w8=("Wv",)).emitted(emit_custom)
    assert fuse_shared_inputs(emitted).changed == 1
    assert sorted(node.op_type for node in nodes_of(emitted)) == ["MatMulW4A8", "MatMulW8A8"]


def test_other_inputs_stay_apart_and_order_is_kept(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """The second linear of x comes after one that reads the first's result."""
    model = build(
        "g (float[A, 8] x) => (float[A, 8] y) { a = MatMul(x, W1) r = Relu(a) b = MatMul(r, W2)"
        " c = MatMul(x, W3) y = Add(b, c) }",
        {name: weight(rng, 8, 8) for name in ("W1", "W2", "W3")},
        opset=21,
        ir_version=10,
    )
    made = quantized(model, tmp_path)
    apart, fused = made.emitted(emit_custom), made.emitted(emit_custom)
    assert fuse_shared_inputs(fused).changed == 1
    assert [len(node.outputs) for node in nodes_of(fused)] == [2, 1]
    x = rng.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(fused, {"x": x})["y"], run(apart, {"x": x})["y"])
