"""Codes of the KV cache: the definition, and ONNX Runtime's own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fptq_onnx.numerics.kv_cache_int8 import cache_scales, encode_cache


def test_scales_reach_the_largest_value() -> None:
    scales = cache_scales(np.array([[127.0, 1.27, 0.0, 1e-44]]))
    np.testing.assert_allclose(scales, [[1.0, 0.01, 1.0, 1.0]])
    assert scales.dtype == np.float32


def test_rounding(rng: np.random.Generator) -> None:
    x = np.array([0.5, 1.5, -0.5, -2.5, 126.6, 127.6, 1e30, -1e30, np.inf, -np.inf, np.nan])
    codes = encode_cache(x.astype(np.float32), np.float32(1))
    assert codes.tolist() == [0, 2, 0, -2, 127, 127, 127, -128, 127, -128, 127]
    values = rng.normal(size=(100, 8)).astype(np.float32)
    scales = cache_scales(np.abs(values).max(axis=0))
    error = np.abs(encode_cache(values, scales) * scales - values)
    assert (error <= scales / 2 * 1.00001).all() and error.max() > scales.min() / 4


def test_same_codes_as_onnxruntime(rng: np.random.Generator) -> None:
    # Values lie between two codes, where a quotient and a product with the reciprocal differ.
    tokens, size = 512, 64
    scales = ((rng.random(size) + 0.5) / 50).astype(np.float32)
    x = (rng.integers(-140, 140, (tokens, size)) + np.float32(0.5)).astype(np.float32) * scales
    x[3, 5] = np.nan
    kinds = {"past_k": ir.DataType.INT8, "past_v": ir.DataType.INT8}
    kinds |= {"lengths": ir.DataType.INT32, "total": ir.DataType.INT32}
    names = ["q", "k", "v", "past_k", "past_v", "lengths", "total", "k_scale", "v_scale"]
    values = [
        ir.Value(name=name, type=ir.TensorType(kinds.get(name, ir.DataType.FLOAT)))
        for name in names
    ]
    outputs = [ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))]
    outputs += [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT8))
        for name in ("present_k", "present_v")
    ]
    node = ir.node(
        "GroupQueryAttention", [*values[:7], *[None] * 5, *values[7:]],
        {"num_heads": 1, "kv_num_heads": 1, "k_quant_type": "PER_CHANNEL",
         "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8},
        domain="com.microsoft", outputs=outputs,
    )  # fmt: skip
    graph = ir.Graph(
        values, outputs, nodes=[node], opset_imports={"": 21, "com.microsoft": 1}, name="g"
    )
    session = ort.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    empty = np.zeros((1, 1, 0, size), np.int8)
    _, *present = session.run(
        None,
        {
            "q": x[None], "k": x[None], "v": x[None], "past_k": empty, "past_v": empty,
            "lengths": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32),
            "k_scale": scales, "v_scale": scales,
        },
    )  # fmt: skip
    ours = encode_cache(x, scales)
    for codes in present:
        np.testing.assert_array_equal(codes[0, 0], ours)
    quotients = np.rint(np.nan_to_num(x / scales, nan=127)).clip(-128, 127)
    assert (quotients != ours).mean() > 0.01  # the test can tell
