"""RMSNorm with a reciprocal: the same numbers, and ONNX Runtime knows the norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.tiny_graphs import build, run

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.optimize.reciprocal_to_div import reciprocal_to_div

NORM = (
    "s = Pow(x, two) m = ReduceMean<keepdims = 1>(s, last) a = Add(m, eps) r = Sqrt(a)"
    " i = Reciprocal(r) n = Mul(x, i) y = Mul(gain, n)"
)


def norm(text: str = NORM, kind: str = "float") -> ir.Model:
    dtype = np.float16 if kind == "float16" else np.float32
    arrays = {
        "two": np.array(2, dtype), "last": np.array([-1]), "eps": np.array(1e-5, dtype),
        "gain": np.linspace(0.5, 2, 16).astype(dtype),
    }  # fmt: skip
    model = build(f"g_ ({kind}[b, s, 16] x) => ({kind}[b, s, 16] y) {{ {text} }}", arrays)
    for node in model.graph:
        for value in node.outputs:
            value.dtype = ir.DataType.from_numpy(np.dtype(dtype))
    return model


@pytest.mark.parametrize(("kind", "eps"), [("float", 2.0**-23), ("float16", 2.0**-10)])
def test_the_same_numbers(rng: np.random.Generator, kind: str, eps: float) -> None:
    model = norm(kind=kind)
    x = rng.standard_normal((2, 3, 16)).astype("f4" if kind == "float" else "f2")
    before = run(model, {"x": x})["y"].astype("f8")
    assert reciprocal_to_div(model) == PassResult(1)
    after = run(model, {"x": x})["y"].astype("f8")
    assert np.abs(after - before).max() <= 4 * eps * np.abs(before).max()


def optimized_ops(model: ir.Model, folder: Path) -> set[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


def test_onnx_runtime_makes_one_op_of_it(tmp_path: Path) -> None:
    """Not before: when this fails, the pass is not needed any more."""
    model = norm()
    assert "SimplifiedLayerNormalization" not in optimized_ops(model, tmp_path)
    reciprocal_to_div(model)
    assert optimized_ops(model, tmp_path) == {"SimplifiedLayerNormalization"}


@pytest.mark.parametrize(
    "text",
    [
        NORM.replace("i = Reciprocal(r)", "i = Reciprocal(a)"),
        NORM.replace("ReduceMean<", "ReduceSum<"),
        NORM.replace("r = Sqrt(a)", "r = Exp(a)"),
    ],
)
def test_other_reciprocals_are_left(text: str) -> None:
    assert reciprocal_to_div(norm(text)) == PassResult(0)
