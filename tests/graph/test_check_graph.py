"""The check between passes: it finds each kind of trouble, and none in sound graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq_onnx.graph.check_graph import graph_problems
from fptq_onnx.model_io.load import load_model

REPOSITORY = Path(__file__).resolve().parents[2]
BRANCHES = """<ir_version: 8, opset_import: ["" : 18]>
g (float[2] x, bool c) => (float[2] z) {
    y = Exp (x)
    z = If <then_branch = t () => (float[2] a) { n = Neg (y) a = Abs (n) },
            else_branch = e () => (float[2] b) { n = Sin (y) b = Cos (n) }> (c)
}"""


def chain() -> ir.Model:
    weight = ir.tensor(np.ones(2, np.float32), name="w")
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[2] x) => (float[2] z) { y = Exp (x) v = Mul (y, w) z = Neg (v) }",
        initializers=[weight],
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def branches() -> ir.Model:
    model = ir.from_onnx_text(BRANCHES)
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    return model


def forget_weight(model: ir.Model) -> None:
    del model.graph.initializers["w"]


def take_node_out(model: ir.Model) -> None:
    model.graph.remove(model.graph[1])


def take_last_out(model: ir.Model) -> None:
    model.graph.remove(model.graph[2])


def swap(model: ir.Model) -> None:
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)


def same_name(model: ir.Model) -> None:
    model.graph[1].outputs[0].name = "y"


def other_domain(model: ir.Model) -> None:
    model.graph[1].domain = "com.microsoft"


def read_from_a_branch(model: ir.Model) -> None:
    inner = model.graph[1].attributes["then_branch"].as_graph()
    model.graph.append(ir.node("Neg", [inner[0].outputs[0]], name="late"))


def read_a_hidden_name(model: ir.Model) -> None:
    """The branch calls a value of its own y, and reads the y outside by that name."""
    inner = model.graph[1].attributes["then_branch"].as_graph()
    inner.insert_before(inner[0], node := ir.node("Sin", [model.graph.inputs[0]], name="s"))
    node.outputs[0].name = "y"


@pytest.mark.parametrize(
    ("make", "harm", "kind", "text"),
    [
        (chain, forget_weight, "missing", "Mul 'v' reads 'w', which is no input and no init"),
        (chain, take_node_out, "missing", "Neg 'z' reads 'v', which Mul 'v' makes, and that is in"),
        (chain, take_last_out, "missing", "'z' is an output, which Neg 'z' makes, and that is in"),
        (chain, swap, "order", "Mul 'v' reads 'y', which Exp 'y' makes only later"),
        (chain, same_name, "name", "two values have the name 'y'"),
        (chain, other_domain, "domain com.microsoft", "Mul 'v' is of the domain 'com.microsoft'"),
        (branches, read_from_a_branch, "missing", "Neg 'late' reads 'n', which Neg 'n' makes"),
        (branches, read_a_hidden_name, "name", "Neg 'n' reads 'y', but the name stands for"),
    ],
)
def test_each_kind_is_found(
    make: Callable[[], ir.Model], harm: Callable[[ir.Model], None], kind: str, text: str
) -> None:
    model = make()
    assert graph_problems(model) == ()
    harm(model)
    found = graph_problems(model)
    assert kind in {problem.kind for problem in found}
    assert any(str(problem).startswith(text) for problem in found), found


def test_a_name_may_be_used_again_inside() -> None:
    """As scan bodies do, whose inputs have the names of what is fed to them."""
    text = BRANCHES.replace("n = Neg (y)", "x = Neg (y)").replace("Abs (n)", "Abs (x)")
    assert graph_problems(ir.from_onnx_text(text)) == ()


def test_a_function_has_a_scope_of_its_own() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]>\n'
        "g (float[2] x) => (float[2] z) { z = own.f (x) }\n"
        '<domain: "own", opset_import: ["" : 18]> f (x) => (z) { y = Exp (x) z = Neg (y) }'
    )
    assert graph_problems(model) == ()
    (function,) = model.functions.values()
    function.remove(function[0])
    (found,) = graph_problems(model)
    assert found.kind == "missing" and "reads 'y'" in str(found)


def test_the_embedded_model_is_sound() -> None:
    assert graph_problems(load_model(REPOSITORY / "models" / "tinystories-7m").model) == ()
