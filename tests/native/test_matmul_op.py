"""The op fptq::MatMulW4A8 in ONNX Runtime, against the NumPy reference: equal to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq_onnx.numerics.int4 import quantize_rtn
from fptq_onnx.numerics.int8 import quantize_per_token, quantize_static
from fptq_onnx.numerics.matmul_w4a8 import matmul_w4a8
from fptq_onnx.numerics.panels import pack_codes, pack_group_values
from fptq_onnx.runtime import register

A_SCALE = np.float32(0.07)
FLOAT = {np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16}


def session(
    k, n, weights, *, bias=None, static=True, dtype=np.float32, rank=3, threads=1, changes=None
):
    """A session over one node; `changes` replaces attributes (None drops one) or inputs."""
    changes = changes or {}
    arrays = {"B": pack_codes(weights.codes), "scales": pack_group_values(weights.scales)}
    if weights.zero_points is not None:
        arrays["zero_points"] = pack_group_values(weights.zero_points)
    if bias is not None:
        arrays["bias"] = bias
    arrays.update({name: value for name, value in changes.items() if name in arrays})
    attributes = {
        "K": k,
        "N": n,
        "block_size": weights.block_size,
        "layout": 1,
        "activation": "static" if static else "per_token",
    }
    if static:
        attributes["a_scale"] = float(A_SCALE)
    attributes.update({name: value for name, value in changes.items() if name not in arrays})
    attributes = {name: value for name, value in attributes.items() if value is not None}
    dims = [f"axis{i}" for i in range(rank - 1)]
    a = ir.val("A", dtype=FLOAT[dtype], shape=ir.Shape([*dims, k]))
    values = {
        name: ir.val(name, const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    }
    inputs = [a, *(values.get(name) for name in ("B", "scales", "zero_points", "bias"))]
    while inputs[-1] is None:
        inputs.pop()
    node = ir.node("MatMulW4A8", inputs, attributes, domain="fptq")
    node.outputs[0].name, node.outputs[0].dtype = "Y", FLOAT[dtype]
    graph = ir.Graph(
        [a],
        node.outputs,
        nodes=[node],
        initializers=list(values.values()),
        opset_imports={"": 21, "fptq": 1},
        name="one_node",
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    register(options)
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def weights_of(k, n, block, *, symmetric=True, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32)
    return quantize_rtn(w, block, symmetric=symmetric)


def expected(x, weights, *, bias=None, static=True):
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    x8, scales = quantize_static(rows, A_SCALE) if static else quantize_per_token(rows)
    y = matmul_w4a8(x8, scales, weights, bias)
    with np.errstate(over="ignore"):
        return y.reshape(*x.shape[:-1], y.shape[1]).astype(x.dtype)


def same_bits(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    both_nan = np.isnan(got) & np.isnan(want)
    bits = np.uint32 if got.dtype == np.float32 else np.uint16
    return bool(((got.view(bits) == want.view(bits)) | both_nan).all())


@pytest.mark.parametrize("kernel", ["avx512vnni", "avx2", "scalar"])
def test_every_kernel_equals_the_reference_on_random_nodes(kernel, monkeypatch):
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", kernel)
    rng = np.random.default_rng(7)
    for seed in range(60):
        k = int(rng.choice([1, 7, 8, 63, 64, 128, 172, 256, 688, 700]))
        n = int(rng.choice([1, 15, 16, 63, 64, 65, 128, 172, 257]))
        block = int(rng.choice([8, 32, 64, 128, 256, -1]))
        symmetric, static, with_bias = (bool(rng.integers(2)) for _ in range(3))
        dtype = [np.float32, np.float16][rng.integers(2)]
        shape = [(3,), (2, 5), (1, 1), (7, 19), (1, 130), (2, 3, 4), (0, 4), ()][rng.integers(8)]
        weights = weights_of(k, n, block, symmetric=symmetric, seed=seed)
        bias = rng.standard_normal(n).astype(np.float32) if with_bias else None
        x = (rng.standard_normal((*shape, k)) * 5).astype(dtype)
        try:
            node = session(
                k,
                n,
                weights,
                bias=bias,
                static=static,
                dtype=dtype,
                rank=x.ndim,
                threads=int(rng.integers(1, 5)),
            )
        except Exception as error:
            if "needs instructions that this CPU lacks" in str(error):
                pytest.skip(f"this CPU cannot run {kernel}")
            raise
        (got,) = node.run(None, {"A": x})
        want = expected(x, weights, bias=bias, static=static)
        assert same_bits(got, want), (k, n, block, symmetric, static, with_bias, dtype, shape)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("kernel", ["", "scalar"])
def test_rows_with_nan_infinity_or_almost_nothing(static, kernel, monkeypatch):
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", kernel)
    weights = weights_of(40, 70, 32)
    x = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)
    x[0, 3], x[1, 39], x[2, 5], x[3], x[4] = np.nan, np.inf, -np.inf, 0, 1e-42
    (got,) = session(40, 70, weights, static=static, rank=2).run(None, {"A": x})
    assert same_bits(got, expected(x, weights, static=static))
    assert np.isnan(got[0]).all() and np.isfinite(got[5]).all()


def test_symbolic_dimensions_reach_the_output():
    node = session(8, 5, weights_of(8, 5, 8))
    assert node.get_outputs()[0].shape == ["axis0", "axis1", 5]


def test_many_threads_and_rows_give_the_same():
    weights = weights_of(688, 200, 128, symmetric=False)
    x = np.random.default_rng(2).standard_normal((1, 301, 688)).astype(np.float32)
    want = expected(x, weights, static=False)
    for threads in (1, 2, 4, 7):
        (got,) = session(688, 200, weights, static=False, threads=threads).run(None, {"A": x})
        assert same_bits(got, want)


BROKEN = {
    "no K": {"K": None},
    "K of another size": {"K": 65},
    "negative K": {"K": -64},
    "huge K": {"K": 1 << 62},
    "no N": {"N": None},
    "zero N": {"N": 0},
    "huge N": {"N": 1 << 62},
    "N of another panel count": {"N": 200},
    "no block_size": {"block_size": None},
    "block_size 0": {"block_size": 0},
    "block_size 12": {"block_size": 12},
    "block_size that gives other groups": {"block_size": 8},
    "unknown layout": {"layout": 2},
    "no layout": {"layout": None},
    "unknown activation": {"activation": "dynamic"},
    "a very long activation": {"activation": "static" * 50},
    "no a_scale": {"a_scale": None},
    "zero a_scale": {"a_scale": 0.0},
    "negative a_scale": {"a_scale": -1.0},
    "NaN a_scale": {"a_scale": float("nan")},
    "infinite a_scale": {"a_scale": float("inf")},
    "truncated weights": {"B": np.zeros((2, 7, 256), np.uint8)},
    "weights of rank 2": {"B": np.zeros((2, 8 * 256), np.uint8)},
    "empty weights": {"B": np.zeros((0, 8, 256), np.uint8)},
    "int8 weights": {"B": np.zeros((2, 8, 256), np.int8)},
    "float16 scales": {"scales": np.zeros((2, 2, 64), np.float16)},
    "scales of another shape": {"scales": np.zeros((2, 1, 64), np.float32)},
    "zero points of another shape": {"zero_points": np.zeros((2, 2, 63), np.uint8)},
    "bias of another length": {"bias": np.zeros(69, np.float32)},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_malformed_nodes_are_refused_with_a_message(changes):
    weights = weights_of(64, 70, 32, symmetric=False)
    with pytest.raises(Exception, match=r"fptq|MatMulW4A8|type|Type"):
        session(64, 70, weights, bias=np.zeros(70, np.float32), changes=changes)


def test_a_wrong_last_dimension_at_run_time_is_refused():
    weights = weights_of(64, 70, 32)
    node = session(64, 70, weights, rank=2)
    with pytest.raises(Exception, match=r"64|K"):
        node.run(None, {"A": np.zeros((2, 63), np.float32)})


def test_an_unknown_forced_kernel_lists_the_known_ones():
    code = (
        "from tests_native import weights_of, session; session(8, 8, weights_of(8, 8, 8))"
    ).replace("tests_native", Path(__file__).stem)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "FPTQ_FORCE_KERNEL": "mmx",
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "mmx names no kernel" in result.stderr and "scalar" in result.stderr
