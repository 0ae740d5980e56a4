"""Ops of opsets 7 to 16, each run by ONNX Runtime before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
import pytest
from saved_models import fingerprint
from tiny_graphs import op_counts, run, tensor_of, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.passes._older_ops import ADAPTERS
from fptq_onnx.passes.raise_old_opset import OLDEST, WANTED, raise_old_opset

X = "float[2, 3, 4, 4] x"
INTS = {"idx": np.array([[0, 2]], np.int64), "four": np.array([4], np.int64)}

# Opset and nodes from x [2, 3, 4, 4] to y. `W` is [4, 4].
NODES = {
    "squeeze": (11, "u = Unsqueeze<axes = [0, 2]>(x) y = Squeeze<axes = [0]>(u)"),
    "squeeze all": (12, "u = Unsqueeze<axes = [0]>(x) y = Squeeze(u)"),
    "sum": (7, "y = ReduceSum<axes = [1, 2], keepdims = 0>(x)"),
    "sum of all": (12, "y = ReduceSum(x)"),
    "mean": (9, "y = ReduceMean<axes = [-1]>(x)"),
    "split": (11, "a, b = Split<axis = 1, split = [1, 2]>(x) y = Mul(a, b)"),
    "even split": (11, "a, b = Split<axis = 2>(x) y = Mul(a, b)"),
    "slice": (9, "y = Slice<axes = [1, 3], starts = [1, 0], ends = [3, -1]>(x)"),
    "slice without axes": (7, "y = Slice<starts = [0, 1], ends = [1, 9]>(x)"),
    "top": (9, "v, i = TopK<k = 2, axis = 2>(x) c = Cast<to = 1>(i) y = Add(v, c)"),
    "clip": (10, "y = Clip<min = -0.25, max = 0.5>(x)"),
    "clip from below": (7, "y = Clip<min = 0.0>(x)"),
    "clip of an unknown type": (8, "u = Relu(x) h = Exp(u) y = Clip<max = 1.25>(h)"),
    "pad": (10, "y = Pad<pads = [0, 0, 1, 0, 0, 0, 0, 2], value = 3.0>(x)"),
    "pad with zeros": (7, "y = Pad<pads = [0, 0, 1, 0, 0, 0, 0, 2]>(x)"),
    "reflect": (8, 'y = Pad<mode = "reflect", pads = [0, 0, 1, 0, 0, 0, 0, 2]>(x)'),
    "dropout": (7, "y = Dropout<ratio = 0.5>(x)"),
    "dropout with a mask": (10, "d, m = Dropout<ratio = 0.5>(x) y = Relu(d)"),
    "dropout of 12": (12, "y = Dropout(x)"),
    "softmax of the last axis": (11, "y = Softmax<axis = 3>(x)"),
    "softmax of axis -1": (12, "y = Softmax<axis = -1>(x)"),
    "softmax by default": (7, "y = Softmax(x)"),
    "softmax of two axes": (9, "y = Softmax<axis = 2>(x)"),
    "softmax of all": (11, "y = Softmax<axis = 0>(x)"),
    "softmax of axis -2": (11, "y = LogSoftmax<axis = -2>(x)"),
    "log softmax": (8, "y = LogSoftmax<axis = 3>(x)"),
    "hardmax": (12, "y = Hardmax<axis = 2>(x)"),
    "softmax of a product": (9, "p = MatMul(x, W) y = Softmax<axis = 3>(p)"),
    "upsample": (7, 'y = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]>(x)'),
    "upsample linear": (8, 'y = Upsample<mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]>(x)'),
    "upsample of 9": (9, 'y = Upsample<mode = "nearest">(x, larger)'),
    "resize": (10, 'y = Resize<mode = "nearest">(x, larger)'),
    "resize to less": (10, 'y = Resize<mode = "nearest">(x, smaller)'),
    "resize to less, not evenly": (10, 'y = Resize<mode = "nearest">(x, uneven)'),
    "resize linear": (10, 'y = Resize<mode = "linear">(x, larger)'),
    "scatter": (9, "f = Flatten<axis = 3>(x) y = Scatter<axis = 1>(f, idx2, upd)"),
    "batch norm of 7": (7, "y = BatchNormalization<epsilon = 0.01>(x, g, b, mean, var)"),
    "batch norm of 9": (9, "y = BatchNormalization(x, g, b, mean, var)"),
    "norm of ONNX Runtime": (11, "y = LayerNormalization<axis = -1>(x, gain)"),
    "op of another domain": (11, "f = com.microsoft.FastGelu(x) y = Softmax<axis = 3>(f)"),
    "max and sum": (7, "m = Max(x, x) y = Sum(m, x)"),
    "scan of 8": (
        8,
        "u = Squeeze<axes = [0]>(one_row) h = ReduceSum<axes = [1], keepdims = 0>(x)"
        " s, z = Scan<num_scan_inputs = 1, body = body (float[4, 4] hi, float[4, 4] xi) =>"
        " (float[4, 4] ho, float[4, 4] yo) { hd = Mul(hi, u) ho = Add(hd, xi) yo = Tanh(ho) }>"
        "(, h, x) sz = ReduceSum<axes = [1], keepdims = 0>(z) y = Add(s, sz)",
    ),
    "scan of 8, backwards": (
        8,
        "h = ReduceSum<axes = [1], keepdims = 0>(x) s, y = Scan<num_scan_inputs = 1, directions ="
        " [1], body = body (float[4, 4] hi, float[4, 4] xi) => (float[4, 4] ho, float[4, 4] yo)"
        " { hs = Softmax<axis = 1>(hi) ho = Add(hs, xi) yo = Tanh(ho) }>(, h, x)",
    ),
    "roi": (10, "y = RoiAlign<output_height = 2, output_width = 2>(x, rois, batch)"),
    "if": (
        11,
        "s = ReduceSum<keepdims = 0>(x) c = Greater(s, nought) y = If<then_branch = t () => (ty)"
        " { tq = Softmax<axis = 3>(x) ty = Squeeze<axes = [0]>(tq) }, else_branch = e () => (ey)"
        " { ec = Clip(x) ey = ReduceSum<axes = [0], keepdims = 0>(ec) }>(c)",
    ),
    "loop": (
        9,
        "n = Constant<value = int64 {2}>() yes = Constant<value = bool {1}>()"
        " y = Loop<body = body (int64 it, bool ci, float[2, 3, 4, 4] vi) => (bool co,"
        " float[2, 3, 4, 4] vo) { co = Identity(ci) vp = MatMul(vi, W) vo = Softmax<axis = 2>(vp)"
        " }>(n, yes, x)",
    ),
}  # fmt: skip


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "W": weight(rng, 4, 4),
        "gain": weight(rng, 4),
        "one_row": weight(rng, 1, 4),
        **{name: weight(rng, 3) for name in ("g", "b", "mean")},
        "var": np.abs(weight(rng, 3)) + np.float32(0.1),
        "larger": np.array([1, 1, 2, 3], np.float32),
        "smaller": np.array([1, 1, 0.5, 0.5], np.float32),
        "uneven": np.array([1, 1, 0.75, 0.6], np.float32),
        "idx2": np.array([[0, 2]] * 24, np.int64),
        "upd": weight(rng, 24, 2),
        "rois": np.array([[0, 0, 3, 3], [1, 0, 2, 3]], np.float32),
        "batch": np.array([0, 1], np.int64),
        "nought": np.array(0, np.float32),
    }


def model_of(rng: np.random.Generator, opset: int, nodes: str) -> ir.Model:
    tensors = [tensor_of(k, v) for k, v in arrays(rng).items() if k in nodes]
    return ir.from_onnx_text(
        f'<ir_version: 7, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
        f" g_ ({X}) => (float[] y) {{ {nodes} }}".replace("float[] y", "y"),
        initializers=tensors,
    )


@pytest.mark.parametrize("name", NODES)
def test_onnxruntime_gives_the_same_before_and_after(rng: np.random.Generator, name: str) -> None:
    opset, nodes = NODES[name]
    model = model_of(rng, opset, nodes)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    x = weight(rng, 2, 3, 4, 4)
    before = run(model, {"x": x})["y"]
    assert raise_old_opset(model) == opset
    assert model.opset_imports[""] == WANTED
    # Between two opsets ONNX Runtime may take another kernel; sums of 48 elements at most.
    np.testing.assert_allclose(run(model, {"x": x})["y"], before, rtol=1e-5, atol=1e-6)
