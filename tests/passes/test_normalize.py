from __future__ import annotations

import numpy as np
import onnx_ir as ir
from support.tiny_graphs import build, run, weight

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.normalize import normalize


def names_of(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph.all_nodes()]


def chain(names: list[str | None]) -> ir.Model:
    count = len(names)
    body = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(count))
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        f"g (float[2] v0) => (float[2] v{count}) {{ {body} }}"
    )
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    return model


def test_unique_names_are_kept() -> None:
    model = chain(["b", "a", "c"])
    normalize(model)
    assert names_of(model) == ["b", "a", "c"]


def test_missing_and_repeated_names_become_unique() -> None:
    model = chain([None, "a", "", "a", "a"])
    normalize(model)
    names = names_of(model)
    assert len(set(names)) == 5
    assert all(names)
    assert names[1] == "a"


def test_made_up_names_give_way_to_given_ones() -> None:
    model = chain([None, "Relu_0", "a", "a", "a_2"])
    normalize(model)
    names = names_of(model)
    assert len(set(names)) == 5
    assert (names[1], names[2], names[4]) == ("Relu_0", "a", "a_2")


def test_subgraphs_take_part() -> None:
    model = build(
        "g (bool c, float[2] x) => (float[2] y) {"
        " y = If(c) <then_branch = t () => (float[2] i) { i = Relu(x) },"
        " else_branch = e () => (float[2] j) { j = Neg(x) }> }",
        names=False,
    )
    assert len(set(names_of(model))) == 3


def test_functions_are_inlined_and_their_linears_found(rng: np.random.Generator) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[A, 4] x) => (float[A, 3] y) { z = own.Twice(x) y = own.Linear(z, W, b) }
        <domain: "own", opset_import: ["" : 18]>
        Linear (x, w, b) => (y) { p = MatMul(x, w) y = Add(p, b) }
        <domain: "own", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add(x, x) }""",
        initializers=[
            ir.tensor(weight(rng, 4, 3), name="W"),
            ir.tensor(weight(rng, 3), name="b"),
        ],
    )
    x = weight(rng, 5, 4)
    before = run(model.clone(), {"x": x})["y"]
    normalize(model)
    assert not model.functions
    linear = find_linears(model).linears[0]
    assert linear.bias is not None
    assert (linear.output.name, linear.k, linear.n) == ("y", 4, 3)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], before)


def test_what_no_output_depends_on_is_gone(rng: np.random.Generator) -> None:
    """A linear among it would be in the plan, and not in what the folds leave."""
    model = build(
        "g (float[A, 4] x) => (float[A, 3] y) {"
        " n = LayerNormalization(x, gain) pooler = MatMul(n, W) t = Tanh(pooler)"
        " y = MatMul(n, W) }",
        {"W": weight(rng, 4, 3), "gain": weight(rng, 4)},
    )
    normalize(model)
    assert [linear.name for linear in find_linears(model).linears] == ["y"]
    assert "t" not in names_of(model)
