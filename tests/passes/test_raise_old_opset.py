"""Ops of opsets 7 to 16, each run by ONNX Runtime before and after."""

from __future__ import annotations

import itertools
import re
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

# Opset and nodes from x [2, 3, 4, 4] to y. `W` is [4, 4].
NODES = {
    "squeeze": (11, "u = Unsqueeze<axes = [0, 2]>(x) y = Squeeze<axes = [0]>(u)"),
    "squeeze all": (12, "u = Unsqueeze<axes = [0]>(x) y = Squeeze(u)"),
    "sum": (7, "y = ReduceSum<axes = [1, 2], keepdims = 0>(x)"),
    "sum of all": (12, "y = ReduceSum(x)"),
    "mean": (9, "y = ReduceMean<axes = [-1]>(x)"),
    "split": (11, "a, a2 = Split<axis = 1, split = [1, 2]>(x) y = Mul(a, a2)"),
    "even split": (11, "a, a2 = Split<axis = 2>(x) y = Mul(a, a2)"),
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
        10,
        "s = ReduceSum<keepdims = 0>(x) c = Greater(s, many) y = If<then_branch = t () => (ty)"
        " { tq = Softmax<axis = 3>(x) ty = ReduceSum<axes = [0], keepdims = 0>(tq) },"
        " else_branch = e () => (ey) { ec = Clip<max = 0.5>(x)"
        " ey = ReduceSum<axes = [0], keepdims = 0>(ec) }>(c)",
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
        "many": np.array(99, np.float32),
    }


def model_of(rng: np.random.Generator, opset: int, nodes: str) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
        f" g_ ({X}) => (y) {{ {nodes} }}"
    )
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    read = set(re.findall(r"\w+", nodes))
    for name, array in arrays(rng).items():
        if name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("name", NODES)
def test_onnxruntime_gives_the_same_before_and_after(rng: np.random.Generator, name: str) -> None:
    opset, nodes = NODES[name]
    model = model_of(rng, opset, nodes)
    x = weight(rng, 2, 3, 4, 4)
    before = run(model, {"x": x})["y"]
    assert raise_old_opset(model) == opset
    assert model.opset_imports[""] == WANTED
    # Between two opsets ONNX Runtime may take another kernel; sums of 48 elements at most.
    np.testing.assert_allclose(run(model, {"x": x})["y"], before, rtol=1e-5, atol=1e-6)


def test_every_op_that_onnx_changed_has_an_adapter() -> None:
    """Against onnx's own history: attributes or outputs gone, another default, inputs that are new
    and required, or the op itself gone."""
    history: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= WANTED:
            history.setdefault(schema.name, []).append(schema)
    changed = set()
    for name, schemas in history.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in itertools.pairwise(schemas):
            if new.since_version <= OLDEST:
                continue
            gone = set(old.attributes) - set(new.attributes)
            defaults = [
                key for key in set(old.attributes) & set(new.attributes)
                if old.attributes[key].default_value != new.attributes[key].default_value
            ]  # fmt: skip
            if gone or defaults or new.deprecated or new.min_input > old.min_input or (
                new.max_output < old.max_output
            ):  # fmt: skip
                changed.add((name, new.since_version))
    changed.discard(("Constant", 11))  # the value may now be sparse instead
    changed.discard(("MaxPool", 8))
    # Upsample was taken out at 10 in the same release as Resize came.
    assert changed - {(name, at) for at, names in ADAPTERS.items() for name in names} == set()


@pytest.mark.parametrize("axis", [3, -1])
def test_a_softmax_of_the_last_axis_stays_one_node(rng: np.random.Generator, axis: int) -> None:
    """The rank is known through a reshape whose sizes are joined, and ONNX Runtime's own ops."""
    model = model_of(
        rng, 11,
        "n = LayerNormalization<axis = -1>(x, gain) p = MatMul(n, W) f = com.microsoft.FastGelu(p)"
        f" y = Softmax<axis = {axis}>(f)",
    )  # fmt: skip
    raise_old_opset(model)
    assert op_counts(model)["Softmax"] == 1 and not {"Flatten", "Reshape"} & set(op_counts(model))
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert softmax.attributes["axis"].as_int() == -1


def test_a_softmax_of_unknown_rank_is_still_right(rng: np.random.Generator) -> None:
    model = model_of(rng, 11, "u = com.microsoft.Unknown(x) y = Softmax<axis = 3>(u)")
    raise_old_opset(model)
    assert op_counts(model) == {"Unknown": 1, "Shape": 1, "Flatten": 1, "Softmax": 1, "Reshape": 1}
    model.graph[0].domain, model.graph[0].op_type = "", "Exp"
    x = weight(rng, 2, 3, 4, 4)
    e = np.exp(np.exp(x.astype(np.float64)))
    np.testing.assert_allclose(run(model, {"x": x})["y"], e / e.sum(-1, keepdims=True), rtol=1e-5)


def test_big_weights_are_not_read(rng: np.random.Generator, tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 7, opset_import: ["" : 11]> g_ (float[A, 64] x) => (float[A, 64] y)'
        " { p = MatMul(x, W) y = Softmax<axis = 1>(p) }",
        initializers=[tensor_of("W", weight(rng, 64, 64))],
    )
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    before = fingerprint(tmp_path)
    loaded = ir.load(tmp_path / "m.onnx")
    tensor = loaded.graph.initializers["W"].const_value
    (tmp_path / "m.data").rename(tmp_path / "gone")  # whoever reads them now fails
    assert raise_old_opset(loaded) == 11
    assert loaded.graph.initializers["W"].const_value is tensor
    (tmp_path / "gone").rename(tmp_path / "m.data")
    assert fingerprint(tmp_path) == before


def test_ranks_behind_big_weights_of_branches(rng: np.random.Generator, tmp_path: Path) -> None:
    branch = "{at} () => ({at}y) {{ {at}p = MatMul(x, V) {at}y = Softmax<axis = 2>({at}p) }}"
    proto = onnx.parser.parse_model(
        '<ir_version: 7, opset_import: ["" : 12]> g_ (bool c, float[A, B, 64] x) =>'
        " (float[A, B, 48] y) { y = If(c) <"
        f"then_branch = {branch.format(at='t')}, else_branch = {branch.format(at='e')}> }}"
    )
    for attribute in proto.graph.node[0].attribute:
        held = onnx.numpy_helper.from_array(weight(rng, 64, 48), "V")
        attribute.g.initializer.append(held)
    ir.save(ir.from_proto(proto), tmp_path / "m.onnx", external_data="m.data",
            size_threshold_bytes=0)  # fmt: skip
    loaded = ir.load(tmp_path / "m.onnx")
    held = [value.const_value for g in loaded.graphs() for value in g.initializers.values()]
    raise_old_opset(loaded)
    assert op_counts(loaded) == {"If": 1, "MatMul": 2, "Softmax": 2}
    after = [value.const_value for g in loaded.graphs() for value in g.initializers.values()]
    assert len(held) == 2 and all(a is b for a, b in zip(held, after, strict=True))


def test_weights_that_had_to_be_inputs_are_weights(rng: np.random.Generator) -> None:
    """Before IR version 4 nobody could override them."""
    model = ir.from_onnx_text(
        '<ir_version: 3, opset_import: ["" : 8]> g_ (float[A, 4] x, float[4, 4] W) =>'
        " (float[A, 4] y) { y = MatMul(x, W) }",
        initializers=[tensor_of("W", weight(rng, 4, 4))],
    )
    x = weight(rng, 3, 4)
    before = run(model, {"x": x})["y"]
    assert raise_old_opset(model) == 8
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 8
    np.testing.assert_array_equal(run(model, {"x": x})["y"], before)


def test_names_that_are_taken_are_left_to_their_owners(rng: np.random.Generator) -> None:
    model = model_of(rng, 11, "u_axes = Relu(x) u = Unsqueeze<axes = [0]>(x) s = Squeeze<axes = [0]"
                     ">(u) y = Add(s, u_axes)")  # fmt: skip
    x = weight(rng, 2, 3, 4, 4)
    before = run(model, {"x": x})["y"]
    raise_old_opset(model)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], before)


def test_functions_have_an_opset_of_their_own(rng: np.random.Generator) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 12, "own" : 1]> g_ ({X}) => (float[2, 3, 4, 4] y)'
        ' { y = own.f(x) } <domain: "own", opset_import: ["" : 12]> f (a) => (b)'
        " { c = Unsqueeze<axes = [0]>(a) d = Softmax<axis = -1>(c) b = Squeeze<axes = [0]>(d) }"
    )
    model = ir.from_proto(proto)
    x = weight(rng, 2, 3, 4, 4)
    before = run(model, {"x": x})["y"]
    assert raise_old_opset(model) == 12
    np.testing.assert_array_equal(run(model, {"x": x})["y"], before)


@pytest.mark.parametrize(
    ("opset", "nodes", "text"),
    [
        (8, "s, y = Scan<num_scan_inputs = 1, body = b (hi, xi) => (ho, yo) { ho = Add(hi, xi)"
            " yo = Identity(ho) }>(x, x, x)", "lengths of sequences"),
        (9, "d, m = Dropout(x) y = Relu(m)", "an output that changed its meaning: m"),
        (8, "y = BatchNormalization<spatial = 0>(x, g, b, mean, var)", "spatial = 0"),
        (6, "y = Relu(x)", "older than 7"),
    ],
)  # fmt: skip
def test_what_means_nothing_any_more_is_named(
    rng: np.random.Generator, opset: int, nodes: str, text: str
) -> None:
    with pytest.raises(FptqError, match=text):
        raise_old_opset(model_of(rng, opset, nodes))


@pytest.mark.parametrize("opset", [17, 20])
def test_a_newer_model_stays_as_it_is(rng: np.random.Generator, opset: int) -> None:
    model = model_of(rng, opset, "y = Softmax<axis = 1>(x)")
    before = ir.to_proto(model).SerializeToString()
    assert raise_old_opset(model) is None
    assert ir.to_proto(model).SerializeToString() == before
