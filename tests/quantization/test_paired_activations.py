"""Both models against plain runs of the whole model with its inner values given out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.layer_groups import feeds_of, loaded, propagated, tapped
from support.tiny_graphs import build, run, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.quantization import activation_cache as value_store
from fptq_onnx.quantization.paired_activations import PairedActivations

K = 8
X = f"float[A, S, {K}]"

# Name -> (text from `x` to outputs, names of outputs): W* are [8, 8], g and b [8].
BODIES = {
    "linear on an input of the model": "y = MatMul(x, W1)",
    "chain of linears": "a = MatMul(x, W1) c = MatMul(a, W2) y = MatMul(c, W3)",
    "residual": "n = LayerNormalization(x, g) a = MatMul(n, W1) r = Add(x, a)"
    " m = LayerNormalization(r, g) c = MatMul(m, W2) r2 = Add(r, c) m2 = LayerNormalization(r2, g)"
    " d = MatMul(m2, W3) y = Add(r2, d)",
    "shared input and branches": "n = Tanh(x) q = MatMul(n, W1) k = MatMul(n, W2) p = Mul(q, k)"
    " t = Add(p, n) v = MatMul(t, W3) s = Sigmoid(n) o = Mul(v, s) y = MatMul(o, W1)",
    "read by linears and others": "n = Tanh(x) a = MatMul(n, W1) e = Exp(n) f = Add(e, a)"
    " y = MatMul(f, W2)",
    "a bias, and a bias before": "n = Tanh(x) u = MatMul(n, W1) a = Add(u, b) h = Relu(a)"
    " w = MatMul(h, W2) y = Add(b, w)",
    "a later linear of an early value": "n = Tanh(x) a = MatMul(n, W1) h = Relu(a)"
    " c = MatMul(h, W2) d = MatMul(n, W3) y = Add(c, d)",
    "a late branch off an early value": "n = Tanh(x) a = MatMul(n, W1) h = Relu(a)"
    " c = MatMul(h, W2) e = Sigmoid(n) d = MatMul(e, W3) f = Add(c, d) y = MatMul(f, W1)",
    "rows for Gemm": "to = Constant<value = int64[2] {-1, 8}>() sh = Shape(x) n = Tanh(x)"
    " r = Reshape(n, to) a = Gemm<transB = 1>(r, W1, b) h = Relu(a) i = Reshape(h, to)"
    " c = Gemm(i, W2) y = Reshape(c, sh)",
    "attention": "n = Tanh(x) q = MatMul(n, W1) k = MatMul(n, W2) v = MatMul(n, W3)"
    " kt = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, kt) p = Softmax<axis = -1>(s)"
    " o = MatMul(p, v) y = MatMul(o, W1)",
    "a subgraph that reads linears": "n = Tanh(x) a = MatMul(n, W1) s = ReduceSum<keepdims = 0>(n)"
    " t = Greater(s, zero) i = If(t) <then_branch = t_ () => (t_y) { t_y = Add(a, n) },"
    " else_branch = e_ () => (e_y) { e_h = Sub(a, n) e_y = Mul(e_h, a) }> y = MatMul(i, W2)",
    "an unused linear": "n = Tanh(x) a = MatMul(n, W1) h = Relu(n) y = MatMul(h, W2)",
}


def model_of(rng: np.random.Generator, body: str, outputs: str = "y") -> ir.Model:
    weights = {name: weight(rng, K, K) for name in ("W1", "W2", "W3")}
    weights |= {"g": weight(rng, K), "b": weight(rng, K), "zero": np.zeros((), np.float32)}
    tokens = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    shapes = {"y": "float"}
    declared = ", ".join(f"{shapes.get(name, X)} {name}" for name in outputs.split())
    return build(
        f"g_ ({X} x) => ({declared}) {{ {body} }}",
        {name: array for name, array in weights.items() if name in tokens},
    )


def batches(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Two samples of different size."""
    return [
        {"x": rng.standard_normal(shape).astype(np.float32)} for shape in ((2, 3, K), (1, 5, K))
    ]


def check_float_stream(model: ir.Model, samples: list[dict], seen: dict) -> None:
    """Every layer group's float input is what a plain run computes there.

    Linears are NumPy's here and ONNX Runtime's there: sums of 8 products, each within 8 2^-24 of
    the exact one relative to sum|x||w|, a few layers deep with gains below 8: 1e-4 of the largest.
    """
    linears = find_linears(model).linears
    assert set(seen) == {linear.x.name for linear in linears}
    whole = tapped(model, list(seen))
    for index, sample in enumerate(samples):
        values = {**run(whole, sample), **sample}
        for name, (rows, _) in seen.items():
            expected = values[name].reshape(-1, K)
            assert rows[index].shape == expected.shape
            np.testing.assert_allclose(rows[index], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("name", BODIES)
def test_the_float_stream_is_the_model(
    rng: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    budget: int,
) -> None:
    """Also with everything on disk; with linears that do not err both models are the same bits."""
    monkeypatch.setattr(value_store.ValueStore.__init__, "__defaults__", (budget,))
    model, samples = model_of(rng, BODIES[name]), batches(rng)
    before = loaded(tmp_path, model)
    seen = propagated(before, feeds_of(*samples), tmp_path / "values")
    check_float_stream(model, samples, seen)
    for plain, quantized in seen.values():
        for a, b in zip(plain, quantized, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "values").iterdir())


@pytest.mark.parametrize("name", BODIES)
def test_the_quantized_stream_goes_its_own_way(
    rng: np.random.Generator, tmp_path: Path, name: str
) -> None:
    """Every linear errs by a constant: the same as a model with that constant in each bias."""
    body, noise = BODIES[name], 0.25
    model, samples = model_of(rng, body), batches(rng)
    seen = propagated(loaded(tmp_path, model), feeds_of(*samples), tmp_path / "v", noise=noise)
    check_float_stream(model, samples, seen)
    other = model.clone()
    for linear in find_linears(other).linears:
        last = linear.nodes[-1]
        uses = list(linear.output.uses())
        shift = ir.Value(name=f"{linear.name}_noise")
        shift.const_value = ir.tensor(np.full(1, noise, np.float32), name=shift.name)
        other.graph.register_initializer(shift)
        add = ir.node("Add", [linear.output, shift])
        add.outputs[0].name = f"{linear.name}_noisy"
        other.graph.insert_after(last, add)
        for node, index in uses:
            node.replace_input_with(index, add.outputs[0])
    whole = tapped(other, [f"{name}_noisy" for name in seen] + list(seen))
    by_x = {linear.x.name: linear.x.name for linear in find_linears(model).linears}
    ends = {linear.output.name: linear.name for linear in find_linears(model).linears}
    for index, sample in enumerate(samples):
        values = {**run(whole, sample), **sample}
        for x in by_x:
            inner = f"{ends[x]}_noisy" if x in ends else x
            expected = values[inner].reshape(-1, K)
            atol = 1e-4 * np.abs(expected).max()  # as for the float stream
            np.testing.assert_allclose(seen[x][1][index], expected, atol=atol)


def test_outputs_in_the_middle_and_the_ends_run_once(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    body = "n = Tanh(x) a = MatMul(n, W1) h = Relu(a) c = MatMul(h, W2) y = Exp(c)"
    model, samples = model_of(rng, body, outputs="h n y"), batches(rng)
    seen = propagated(loaded(tmp_path, model), feeds_of(*samples), tmp_path / "v")
    check_float_stream(model, samples, seen)


def test_float16_activations(rng: np.random.Generator, tmp_path: Path) -> None:
    half = {name: weight(rng, K, K, dtype="float16") for name in ("W1", "W2")}
    model = build(
        f"g_ (float16[A, {K}] x) => (float16[A, {K}] y) {{ n = Tanh(x) a = MatMul(n, W1)"
        " h = Relu(a) y = MatMul(h, W2) }",
        half,
    )
    x = weight(rng, 5, K, dtype="float16")
    seen = propagated(loaded(tmp_path, model), feeds_of({"x": x}), tmp_path / "v")
    got = run(tapped(model, ["n", "h"], ir.DataType.FLOAT16), {"x": x})
    np.testing.assert_array_equal(seen["n"][0][0], got["n"].astype(np.float32))
    rows = seen["h"][0][0]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, rows.astype(np.float16))  # rounded as the model's are
    # ONNX Runtime may sum in float16: 8 terms, 2^-11 each, of sum|x||w| < 8 * max|n| max|W|.
    bound = 9 * 2.0**-11 * (np.abs(got["n"]).astype("f4") @ np.abs(half["W1"]).astype("f4"))
    assert (np.abs(rows - got["h"].astype(np.float32)) <= bound).all()


def test_what_onnxruntime_cannot_run_is_said(rng: np.random.Generator, tmp_path: Path) -> None:
    model = model_of(rng, "n = Tanh(x) a = MatMul(n, W1) to = Constant<value = int64[1] {7}>()"
                          " h = Reshape(a, to) e = Expand(h, to) y = MatMul(e, W2)")  # fmt: skip
    with pytest.raises(FptqError, match="ONNX Runtime cannot run a part of the model"):
        propagated(loaded(tmp_path, model), feeds_of(*batches(rng)), tmp_path / "v")


def test_entering_runs_nothing_where_nothing_is_to_be_made(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """The segments of a chain of linears are empty, and nothing is kept of the last one."""
    before = loaded(tmp_path, model_of(rng, BODIES["chain of linears"]))
    activations = PairedActivations(before, find_linears(before.model).linears, [], tmp_path / "v")
    assert [group.segment.outputs for group in activations.groups] == [(), (), ()]
