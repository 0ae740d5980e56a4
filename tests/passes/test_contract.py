"""Running a list of passes: order, results, and the pass that is to blame."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
import pytest
from support.tiny_graphs import build

from fptq_onnx.errors import FptqError
from fptq_onnx.passes import (
    Declined,
    PassError,
    PassResult,
    Refusal,
    apply,
    pass_name,
    rewrite_each,
)


def model() -> ir.Model:
    return build("g (float[2] x) => (float[2] z) { y = Exp (x) v = Abs (y) z = Neg (v) }")


def rename_op(model: ir.Model, op_type: str, to: str) -> PassResult:
    nodes = [node for node in model.graph if node.op_type == op_type]
    for node in nodes:
        node.op_type = to
    return PassResult(len(nodes))


def take_out(model: ir.Model) -> PassResult:
    model.graph.remove(model.graph[1])
    return PassResult(1)


def reverse(model: ir.Model) -> PassResult:
    nodes = list(model.graph)
    model.graph.remove(nodes)
    model.graph.extend(reversed(nodes))
    return PassResult(len(nodes))


def index_error(model: ir.Model) -> PassResult:
    raise IndexError("no input 3")


def refuse_model(model: ir.Model) -> PassResult:
    raise FptqError("give another model")


def disk_is_full(model: ir.Model) -> PassResult:
    raise OSError(28, "No space left on device")


def test_passes_run_in_order_and_their_results_are_kept() -> None:
    first, second = partial(rename_op, op_type="Exp", to="Sin"), partial(
        rename_op, op_type="Sin", to="Cos"
    )  # fmt: skip
    given = model()
    done = apply(given, [second, first, second])
    assert [node.op_type for node in given.graph] == ["Cos", "Abs", "Neg"]
    assert done.model is given
    assert [(name, result.changed) for name, result in done.results] == [
        ("rename_op", 0), ("rename_op", 1), ("rename_op", 1),
    ]  # fmt: skip
    assert done.changed == done.changed_by("rename_op") == 2
    assert done.ran("rename_op") and not done.ran("take_out")


def test_the_next_pass_gets_the_model_that_one_made() -> None:
    def anew(model: ir.Model) -> PassResult:
        return PassResult(1, model=model.clone())

    given = model()
    done = apply(given, [anew, partial(rename_op, op_type="Exp", to="Sin")])
    assert done.model is not given
    assert [graph[0].op_type for graph in (given.graph, done.model.graph)] == ["Exp", "Sin"]


def test_the_pass_that_breaks_the_graph_is_named() -> None:
    harmless = partial(rename_op, op_type="Exp", to="Sin")
    with pytest.raises(PassError, match="the pass take_out broke the graph: Neg 'z' reads 'v'"):
        apply(model(), [harmless, partial(take_out), harmless])
    with pytest.raises(PassError, match=r"pass reverse broke .* only later \(and 1 more\)"):
        apply(model(), [harmless, reverse])


def test_the_check_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apply(model(), [take_out], check=False).changed == 1
    monkeypatch.setenv("FPTQ_NO_GRAPH_CHECK", "1")
    assert apply(model(), [take_out]).changed == 1
    with pytest.raises(PassError):
        apply(model(), [take_out], check=True)


def test_what_was_wrong_before_is_no_pass_s_fault() -> None:
    """ONNX Runtime runs graphs whose nodes are not sorted; other kinds are still looked for."""
    unsorted = model()
    reverse(unsorted)
    assert apply(unsorted, [partial(rename_op, op_type="Exp", to="Sin")]).changed == 1
    with pytest.raises(PassError, match="the pass take_out"):
        apply(unsorted, [take_out])


def test_the_pass_that_fails_is_named() -> None:
    with pytest.raises(PassError, match="the pass index_error failed: no input 3") as failure:
        apply(model(), [index_error])
    assert isinstance(failure.value.__cause__, IndexError)
    with pytest.raises(PassError, match="the pass <lambda> returned int"):
        apply(model(), [lambda model: 1])  # type: ignore[arg-type, return-value, list-item]


def test_what_is_not_the_fault_of_a_pass_is_passed_on() -> None:
    with pytest.raises(FptqError, match=r"^give another model$"):
        apply(model(), [refuse_model])
    with pytest.raises(OSError, match="No space left"):
        apply(model(), [disk_is_full])


def test_names_of_passes() -> None:
    assert pass_name(partial(partial(rename_op, op_type="Exp"), to="Sin")) == "rename_op"


def test_the_loop_of_one_node_passes() -> None:
    """New nodes are not offered, removed ones are left out, refusals are kept with the reason."""
    given, offered = model(), []

    def rule(node: ir.Node) -> bool:
        offered.append(node.name)
        if node.op_type == "Exp":
            given.graph.append(ir.node("Sin", [node.outputs[0]], name="new"))
            (abs_, neg) = list(given.graph)[1:3]
            neg.replace_input_with(0, node.outputs[0])
            given.graph.remove(abs_, safe=True)
            return True
        if node.op_type == "Neg":
            raise Refusal("it is the last")
        return False

    result = rewrite_each(given.graph, rule, left="it stays")
    assert offered == ["y", "z"]
    assert result == PassResult(1, (Declined("z", "it stays: it is the last"),))
    assert str(result.declined[0]) == "z: it stays: it is the last"
