"""Smoothing scales folded into the columns of a linear: what becomes of weight, bias and rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.gated import FOLDABLE, M, gated_model
from support.tiny_graphs import FLOAT16_EPS, op_counts, run

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.fold_into_producers import fold_into_producers

S = np.exp(np.linspace(-3, 3, M)).astype(np.float32)


def loaded(model: ir.Model, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    linear = find_linears(model).by_name()[name]
    bias = None if linear.bias is None else linear.bias.load()
    return linear.weight.load(), bias


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", FOLDABLE)
def test_columns_and_bias_are_divided_and_rows_multiplied(
    rng: np.random.Generator, name: str, dtype: str
) -> None:
    half = dtype == "float16"
    text = FOLDABLE[name].replace("to = 1>", "to = 10>") if half else FOLDABLE[name]
    model = gated_model(rng, text, dtype=dtype)
    after = model.clone()
    assert fold_into_producers(after, {"up": S}).names == ("up",)
    eps = FLOAT16_EPS if half else 2.0**-23
    (w, b), (w2, b2) = loaded(model, "up"), loaded(after, "up")
    assert w2.dtype == w.dtype
    np.testing.assert_allclose(w2.astype("f8"), w.astype("f8") / S, rtol=eps)
    assert (b is None) == (b2 is None)
    if b is not None and b2 is not None:
        np.testing.assert_allclose(b2.astype("f8"), b.astype("f8") / S, rtol=eps)
    for reader in ("down", "d2") if name == "two readers" else ("down",):
        (v, c), (v2, c2) = loaded(model, reader), loaded(after, reader)
        np.testing.assert_allclose(v2.astype("f8"), v.astype("f8") * S[:, None], rtol=eps)
        np.testing.assert_array_equal(c2, c)
    dropped = {"Transpose": 1} if name == "Transpose" else {}  # its weight is stored as it is read
    counts = op_counts(model)
    assert op_counts(after) == {op: n for op, n in counts.items() if op not in dropped}


@pytest.mark.parametrize("name", ["llama", "Gemm transB", "bias first"])
def test_the_product_really_is_divided(rng: np.random.Generator, name: str) -> None:
    model = gated_model(rng, FOLDABLE[name])
    after = model.clone()
    fold_into_producers(after, {"up": S})
    for graph in (model.graph, after.graph):
        value = next(node for node in graph if node.name == "p").outputs[0]
        value.dtype = ir.DataType.FLOAT
        graph.outputs.append(value)
    x = rng.standard_normal((7, 6)).astype(np.float32)
    expected = run(model, {"x": x})["p"] / S
    # 6-term sums of |x||w| below 8: 7 2^-23 of 8, relative to the largest of its column 1e-5.
    bound = 1e-5 * np.abs(expected).max(axis=0)
    assert (np.abs(run(after, {"x": x})["p"] - expected) <= bound).all()


def test_norm_and_columns_in_one_call(rng: np.random.Generator) -> None:
    """Up takes rows from the norm and columns from down; one weight read twice is copied."""
    text = FOLDABLE["one weight of both"].replace("n = Tanh(x)", "n = LayerNormalization(x, c6)")
    model = gated_model(rng, text.replace("c6", "g6"))
    gain = ir.tensor(np.linspace(1, 2, 6, dtype=np.float32), name="g6")
    node = next(node for node in model.graph if node.name == "n")
    value = ir.Value(name="g6")
    value.const_value = gain
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)
    t = np.exp(np.linspace(2, -2, 6)).astype(np.float32)
    after = model.clone()
    assert fold_into_producers(after, {"up": S, "n": t}).names == ("n", "up")
    w = loaded(model, "up")[0].astype("f8")
    np.testing.assert_allclose(loaded(after, "up")[0], w * t[:, None] / S, rtol=2.0**-22)
    np.testing.assert_allclose(loaded(after, "g")[0], w * t[:, None], rtol=2.0**-22)
    x = rng.standard_normal((7, 6)).astype(np.float32)
    expected, got = run(model, {"x": x})["down"], run(after, {"x": x})["down"]
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()  # as in test_column_sites


def test_a_name_that_takes_no_fold(rng: np.random.Generator) -> None:
    model = gated_model(rng, FOLDABLE["llama"])
    for name in ("down", "g", "nobody"):
        with pytest.raises(FptqError, match=f"folds an equalization into '{name}'"):
            fold_into_producers(model.clone(), {name: S})


def test_nothing_is_read_before_it_is_asked_for(rng: np.random.Generator) -> None:
    model = gated_model(rng, FOLDABLE["Gemm transB"])
    before = {name: v.const_value.tobytes() for name, v in model.graph.initializers.items()}
    after = model.clone()
    fold_into_producers(after, {"up": S})
    lazy = [v.const_value for name, v in after.graph.initializers.items() if "_equalized" in name]
    assert len(lazy) == 3  # columns, bias, rows
    assert all(isinstance(tensor, ir.LazyTensor) for tensor in lazy)
    assert before == {name: v.const_value.tobytes() for name, v in model.graph.initializers.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["llama", "Gemm transB", "Transpose", "one weight of both"])
def test_another_weight_for_one_linear(rng: np.random.Generator, name: str, dtype: str) -> None:
    model = gated_model(rng, FOLDABLE[name], dtype=dtype)
    w = rng.standard_normal((6, M)).astype(dtype)
    replace_weight(find_linears(model).by_name()["up"], ir.tensor(w))
    np.testing.assert_array_equal(loaded(model, "up")[0], w)
    assert not np.array_equal(loaded(model, "g")[0], w)
    run(model, {"x": np.zeros((3, 6), dtype)})
