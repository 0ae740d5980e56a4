from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_graphs import build, run, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears import find_linears
from fptq_onnx.passes.raise_opset import raise_opset

# ReduceMean has its axes as an attribute up to opset 17, as an input from 18 on.
BODY = {
    17: "m = ReduceMean<axes = [-1]>(p)",
    18: "m = ReduceMean(p, axes)",
}
BIG = (64, 48)  # above what the converter may see


def model_at(rng: np.random.Generator, opset: int) -> ir.Model:
    weights = {"W": weight(rng, *BIG), "g": weight(rng, 64), "eps": np.float32(1e-5)[()]}
    weights = {name: np.asarray(array) for name, array in weights.items()}
    if opset >= 18:
        weights["axes"] = np.array([-1], np.int64)
    model = build(
        f"g_ (float[A, 64] x) => (float[A, 48] y) {{ p = Mul(x, x) {BODY[min(opset, 18)]}"
        " a = Add(m, eps) s = Sqrt(a) h = Div(x, s) n = Mul(h, g) y = MatMul(n, W) }",
        weights,
        opset=opset,
    )
    model.metadata_props["source"] = "kept"
    return model


def by_name(model: ir.Model) -> dict[str | None, bytes]:
    return {name: value.const_value.tobytes() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_the_function_and_the_names_stay(rng: np.random.Generator, opset: int) -> None:
    model = model_at(rng, opset)
    x = weight(rng, 5, 64)
    before, proto = run(model, {"x": x})["y"], ir.to_proto(model).SerializeToString()
    raised = raise_opset(model, 21)
    assert raised.opset_imports[""] == 21
    # The same operations in the same order: no rounding differs.
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], before)
    assert {node.name for node in model.graph} <= {node.name for node in raised.graph}
    assert [linear.name for linear in find_linears(raised).linears] == ["y"]
    assert [value.name for value in raised.graph.inputs] == ["x"]
    assert raised.metadata_props["source"] == "kept"
    assert ir.to_proto(model).SerializeToString() == proto  # the original is untouched


def test_big_weights_are_carried_over_unread(rng: np.random.Generator) -> None:
    model = model_at(rng, 17)
    tensor = model.graph.initializers["W"].const_value
    raised = raise_opset(model, 21)
    assert raised.graph.initializers["W"].const_value is tensor
    kept = by_name(raised)
    for name, data in by_name(model).items():
        assert kept[name] == data, name


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_a_newer_model_is_returned_as_it_is(rng: np.random.Generator, opset: int) -> None:
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) { y = MatMul(x, W) }",
        {"W": weight(rng, 4, 3)},
        opset=opset,
    )
    assert raise_opset(model, 21) is model


def test_other_domains_are_left_alone(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) { n = com.microsoft.QuickGelu(x) y = MatMul(n, W) }",
        {"W": weight(rng, 4, 3)},
        opset=18,
        microsoft=True,
    )
    x = weight(rng, 5, 4)
    raised = raise_opset(model, 21)
    assert raised.opset_imports["com.microsoft"] == 1
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], run(model, {"x": x})["y"])


def test_small_external_tensors_are_carried_along(rng: np.random.Generator, tmp_path: Path) -> None:
    """Some exporters put every tensor into the data file, axes and scalars too."""
    model = model_at(rng, 18)
    x = weight(rng, 5, 64)
    before = run(model, {"x": x})["y"]
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    assert all(
        isinstance(value.const_value, ir.ExternalTensor)
        for value in loaded.graph.initializers.values()
    )
    raised = raise_opset(loaded, 21)
    for value in raised.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], before)


def test_an_overridable_weight_stays_one(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 64] x, float[64, 48] W) => (float[A, 48] y) { y = MatMul(x, W) }",
        {"W": weight(rng, *BIG)},
    )
    raised = raise_opset(model, 21)
    x, other = weight(rng, 5, 64), weight(rng, *BIG)
    for feeds in ({"x": x}, {"x": x, "W": other}):
        np.testing.assert_array_equal(run(raised, feeds)["y"], run(model, feeds)["y"])


def test_what_the_converter_refuses_is_said_plainly(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: object, opset: int) -> None:
        raise RuntimeError("convert.cc:101: assertion\n%s failed")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(FptqError, match="cannot bring the model from opset 17 to 21") as caught:
        raise_opset(model_at(rng, 17), 21)
    assert "convert.cc" not in str(caught.value)


def test_ops_that_only_onnxruntime_has_in_the_default_domain(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 8] x) => (float[A, 3] y)"
        " { n = SimplifiedLayerNormalization<axis = -1>(x, g) y = MatMul(n, W) }",
        {"g": weight(rng, 8), "W": weight(rng, 8, 3)},
    )
    model.opset_imports[""] = 17
    raised = raise_opset(model, 21)
    assert dict(raised.opset_imports) == {"": 21}
    assert [node.op_identifier() for node in raised.graph] == [
        ("", "SimplifiedLayerNormalization", ""),
        ("", "MatMul", ""),
    ]
    x = rng.standard_normal((2, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], run(model, {"x": x})["y"])
