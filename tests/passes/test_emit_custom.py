"""The fptq node: inputs, attributes and layout. Running it is tested with the native library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import VARIANTS, quantized, spelled
from support.tiny_graphs import build, op_counts, weight

from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC


def array(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.const_value.numpy()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_node_per_linear(
    rng: np.random.Generator, tmp_path: Path, variant: str, symmetric: bool
) -> None:
    model = spelled(rng, variant, 40, 70)
    made = quantized(model, tmp_path, block_size=32, symmetric=symmetric)
    graph = made.emitted(emit_custom).graph
    assert len(graph) == 1
    node = graph.node(0)
    assert (node.domain, node.op_type) == ("fptq", "MatMulW4A8")
    assert node.name == made.linear.name
    assert [value.name for value in graph.outputs] == ["y"]
    assert node.outputs[0] is graph.outputs[0]
    assert node.inputs[0] is graph.inputs[0]
    assert not {"W", "WT", "b"} & set(graph.initializers)
    has_bias = made.linear.bias is not None
    shapes = [None if v is None else tuple(v.shape.numpy()) for v in node.inputs[1:]]
    # An empty tensor stands for the default before a bias: nothing in the middle is left out.
    expected = [(2, 5, 256), (2, 2, 64), (0,) if symmetric else (2, 2, 64), (70,)]
    assert shapes == expected[: 4 if has_bias else 2 if symmetric else 3]
    if has_bias:
        np.testing.assert_array_equal(array(node, 4), made.bias())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "block_size"), [(172, 128), (7, 32), (172, -1)])
def test_the_layout_holds_the_weights(
    rng: np.random.Generator, tmp_path: Path, k: int, block_size: int, symmetric: bool
) -> None:
    """Read element by element as docs/kernels.md says, not with our own unpacking."""
    n = 70
    model = spelled(rng, "matmul", k, n)
    made = quantized(model, tmp_path, block_size=block_size, symmetric=symmetric)
    node = made.emitted(emit_custom).graph.node(0)
    packed, scales, zeros = (array(node, index) for index in (1, 2, 3))
    weights = made.weights()
    length = k if block_size == -1 else block_size
    for row in range(k):
        for column in range(n):
            panel, lane = divmod(column, 64)
            byte = packed[panel, row // 8, 4 * lane + row % 4]
            assert (byte >> (4 if row % 8 >= 4 else 0)) & 15 == weights.codes[row, column]
            group = row // length
            assert scales[panel, group, lane] == weights.scales[group, column]
            if zeros is not None:
                assert zeros[panel, group, lane] == weights.zero_points[group, column]
    assert not scales[1, :, n - 64 :].any()  # missing columns


@pytest.mark.parametrize("size", [1, 2.0**-13, 1e-6, 1e6])
def test_scales_are_float16_where_float16_holds_all_of_them(
    rng: np.random.Generator, tmp_path: Path, size: float
) -> None:
    w = weight(rng, 64, 70)
    w[:32, 3] *= np.float32(size)
    model = build("g (float[A, 64] x) => (float[A, 70] y) { y = MatMul(x, W) }", {"W": w})
    made = quantized(model, tmp_path, block_size=32)
    value = made.emitted(emit_custom).graph.node(0).inputs[2]
    expected = ir.DataType.FLOAT16 if size == 1 else ir.DataType.FLOAT
    assert value.dtype == value.const_value.dtype == expected
    assert value.const_value.numpy().dtype == expected.numpy()
    np.testing.assert_array_equal(value.const_value.numpy()[0, :, 3], made.weights().scales[:, 3])


@pytest.mark.parametrize("scheme", [STATIC, LAE_STATIC, PER_TOKEN])
def test_attributes(rng: np.random.Generator, tmp_path: Path, scheme: str) -> None:
    made = quantized(spelled(rng, "matmul", 40, 6), tmp_path, {"x": np.full(40, 12.7)})
    entry = made.plan.linears[0]
    if scheme == PER_TOKEN:
        made = quantized(spelled(rng, "matmul", 40, 6), tmp_path / "2", schemes=[PER_TOKEN])
    node = made.emitted(emit_custom).graph.node(0)
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    common = {"K": 40, "N": (6,), "block_size": 128, "layout": 1}
    if scheme == PER_TOKEN:
        assert values == {**common, "activation": "per_token"}
    else:
        assert values == {**common, "activation": "static", "a_scale": entry.input_scale}
        assert node.attributes["a_scale"].type == ir.AttributeType.FLOAT


def test_float16_models_keep_their_type_outside(rng: np.random.Generator, tmp_path: Path) -> None:
    """The op reads and writes float16; its bias is float32."""
    made = quantized(spelled(rng, "matmul_bias", 40, 6, dtype="float16"), tmp_path)
    node = made.emitted(emit_custom).graph.node(0)
    assert node.inputs[0].dtype == node.outputs[0].dtype == ir.DataType.FLOAT16
    assert [node.inputs[index].dtype for index in (1, 2, 4)] == [
        ir.DataType.UINT8,
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT,
    ]


def test_a_chain_with_a_float_linear_and_a_shared_bias_stays_connected(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model = build(
        "g (float[A, 64] x) => (float[A, 8] y, float[A, 8] i) {"
        " p = MatMul(x, W1) h = Add(p, b) i = MatMul(h, W2) j = MatMul(i, W3) y = Add(j, b) }",
        {
            "W1": weight(rng, 64, 8),
            "W2": weight(rng, 8, 8),
            "W3": weight(rng, 8, 8),
            "b": weight(rng, 8),
        },
    )
    made = quantized(model, tmp_path, schemes=[STATIC, STATIC, SKIP])
    after = made.emitted(emit_custom)
    assert op_counts(after) == {"MatMulW4A8": 2, "MatMul": 1, "Add": 1}
    first, second, third, last = after.graph
    assert second.inputs[0] is first.outputs[0]
    assert third.inputs[0] is second.outputs[0]
    assert last.inputs[0] is third.outputs[0]
    assert [value.name for value in after.graph.outputs] == ["y", "i"]
    assert after.graph.outputs[1] is second.outputs[0]
    assert "b" in after.graph.initializers  # the float linear still reads it


def test_the_domain_is_imported_and_metadata_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    model = spelled(rng, "matmul_bias", 40, 6)
    model.graph.node(0).metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'a.b', 'c']"
    after = quantized(model, tmp_path).emitted(emit_custom)
    assert after.opset_imports["fptq"] == 1
    assert after.graph.node(0).metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'a.b', 'c']"


def test_shapes_and_types_of_the_output_are_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    made = quantized(spelled(rng, "matmul_bias", 40, 6, rank=3), tmp_path)
    output = made.emitted(emit_custom).graph.outputs[0]
    assert output.dtype == ir.DataType.FLOAT
    assert str(output.shape) == "[A,B,6]"
