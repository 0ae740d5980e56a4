from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, run, weight

from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes import PassResult
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
    raised = raise_opset(model, 21).model
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
    raised = raise_opset(model, 21).model
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
    assert raise_opset(model, 21) == PassResult()


def test_other_domains_are_left_alone(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) { n = com.microsoft.QuickGelu(x) y = MatMul(n, W) }",
        {"W": weight(rng, 4, 3)},
        opset=18,
        microsoft=True,
    )
    x = weight(rng, 5, 4)
    raised = raise_opset(model, 21).model
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
    raised = raise_opset(loaded, 21).model
    for value in raised.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], before)


def test_an_overridable_weight_stays_one(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 64] x, float[64, 48] W) => (float[A, 48] y) { y = MatMul(x, W) }",
        {"W": weight(rng, *BIG)},
    )
    raised = raise_opset(model, 21).model
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
    raised = raise_opset(model, 21).model
    assert dict(raised.opset_imports) == {"": 21}
    assert [node.op_identifier() for node in raised.graph] == [
        ("", "SimplifiedLayerNormalization", ""),
        ("", "MatMul", ""),
    ]
    x = rng.standard_normal((2, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(raised, {"x": x})["y"], run(model, {"x": x})["y"])


def test_weights_in_files_that_branches_hold(rng: np.random.Generator, tmp_path: Path) -> None:
    """Both branches call theirs alike; big ones are carried over unread, small ones too."""
    branch = "{at} () => (float[A, 48] {at}y) {{ {at}p = MatMul(x, V) {at}y = Add({at}p, b) }}"
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g_ (bool c, float[A, 64] x) => (float[A, 48] y) { y = If(c) <"
        f"then_branch = {branch.format(at='t')}, else_branch = {branch.format(at='e')}> }}"
    )
    for attribute in proto.graph.node[0].attribute:
        for name, shape in (("V", BIG), ("b", (48,))):
            held_by = attribute.g.initializer
            held_by.append(onnx.numpy_helper.from_array(weight(rng, *shape), name))
    model = ir.from_proto(proto)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    held = {
        (graph.name, name): value.const_value
        for graph in loaded.graphs()
        for name, value in graph.initializers.items()
    }
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in held.values())
    assert len(held) == 4
    raised = raise_opset(loaded, 21).model
    assert raised.opset_imports[""] == 21
    for graph in raised.graphs():
        for name, value in graph.initializers.items():
            assert (value.const_value is held[graph.name, name]) == (name == "V")
            value.const_value = ir.tensor(value.const_value.numpy(), name=name)
    x = weight(rng, 5, 64)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        np.testing.assert_array_equal(run(raised, feeds)["y"], run(model, feeds)["y"])


def test_an_op_that_changed_its_meaning_is_named(rng: np.random.Generator, tmp_path: Path) -> None:
    """The converter would let it pass; several targets: the one that fails is named, early."""
    weights = {"s": weight(rng, 2), "b": weight(rng, 2), "W": weight(rng, *BIG)}
    model = build(
        "g (float[A, 4, 64] x) => (float[A, 4, 48] y)"
        " { n = GroupNormalization<num_groups = 2>(x, s, b) y = MatMul(n, W) }",
        weights,
        opset=18,
    )
    with pytest.raises(FptqError, match="n: GroupNormalization changed"):
        raise_opset(model, 21)
    ir.save(model, tmp_path / "m.onnx")
    said: list[str] = []
    with pytest.raises(FptqError, match=r"^target qdq: cannot bring .* leave this target out"):
        convert(
            tmp_path / "m.onnx", targets=("custom", "qdq"), samples=[{"x": weight(rng, 2, 4, 64)}],
            say=said.append,
        )  # fmt: skip
    assert not [line for line in said if "calibration" in line]
