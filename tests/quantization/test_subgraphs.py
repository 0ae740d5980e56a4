"""Where a model is cut: each node once, nothing kept longer than it is read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from support.tiny_graphs import build, op_counts, weight

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.quantization.subgraphs import (
    LayerGroup,
    find_layer_groups,
    needed_later,
    segment_model,
)

BLOCK = (
    "g_ (float[A, 8] x, float[A, 8] mask) => (float[A, 8] y) {"
    " n = Tanh(x) q = MatMul(n, W1) k = MatMul(n, W2) t = Mul(q, k) bias = Exp(mask)"
    " s = Add(t, bias) o = MatMul(s, W3) r = Add(o, n) late = Sigmoid(mask) m = Mul(r, late)"
    " u = MatMul(m, W1) y = Add(u, bias) }"
)


def groups_of(
    rng: np.random.Generator, text: str = BLOCK
) -> tuple[ir.Model, tuple[LayerGroup, ...]]:
    weights = {name: weight(rng, 8, 8) for name in ("W1", "W2", "W3")}
    model = build(text, {name: array for name, array in weights.items() if name in text})
    return model, find_layer_groups(model.graph, find_linears(model).linears)


def test_stages_group_linears_by_their_input_in_graph_order(rng: np.random.Generator) -> None:
    _, groups = groups_of(rng)
    assert [group.x for group in groups] == ["n", "s", "m"]
    assert [[linear.name for linear in group.linears] for group in groups] == [
        ["q", "k"], ["o"], ["u"],
    ]  # fmt: skip


def test_what_is_read_kept_and_forgotten(rng: np.random.Generator) -> None:
    _, (first, second, third) = groups_of(rng)
    assert first.segment.inputs == ()
    assert first.segment.outputs == ("n",)
    assert set(first.segment.last_uses) == set()  # n is read again by r
    assert set(second.segment.inputs) == {"q", "k"}
    assert second.segment.outputs == ("s",)  # bias is only read by what no linear needs
    assert set(second.segment.last_uses) == {"q", "k", "s"}
    assert set(third.segment.inputs) == {"o", "n"}
    assert third.segment.outputs == ("m",)
    assert set(third.segment.last_uses) == {"o", "n", "m"}
    assert needed_later((first, second, third)) == {"q", "k", "o", "n"}


def test_common_is_what_no_linear_leads_to(rng: np.random.Generator) -> None:
    _, groups = groups_of(rng)
    assert [group.segment.common for group in groups] == [True, False, False]
    _, groups = groups_of(
        rng,
        "g_ (float[A, 8] x) => (float[A, 8] y) { n = Tanh(x) a = MatMul(n, W1) e = Exp(n)"
        " b = MatMul(e, W2) y = Add(a, b) }",
    )
    assert [group.segment.common for group in groups] == [True, True]
    assert groups[1].segment.inputs == ("n",)


def test_every_node_before_a_linear_runs_in_one_segment(rng: np.random.Generator) -> None:
    model, groups = groups_of(rng)
    ran: list[str] = []
    for group in groups:
        part = segment_model(model, group.segment)
        ran += [node.outputs[0].name or "" for node in part.graph]
        assert {value.name for value in part.graph.outputs} == set(group.segment.outputs)
        assert "MatMul" not in op_counts(part)
        assert not [name for name in part.graph.initializers if name.startswith("W")]
    assert sorted(ran) == ["bias", "late", "m", "n", "r", "s", "t"]


def test_a_segment_asks_for_what_it_reads_alone(rng: np.random.Generator) -> None:
    model, groups = groups_of(rng)
    asked = [
        {value.name for value in segment_model(model, group.segment).graph.inputs}
        for group in groups
    ]
    assert asked == [{"x"}, {"q__cut", "k__cut", "mask"}, {"o__cut", "n__cut", "mask"}]


def test_the_model_stays_as_it_is(rng: np.random.Generator) -> None:
    model, groups = groups_of(rng)
    before = ir.to_proto(model).SerializeToString()
    for group in groups:
        segment_model(model, group.segment)
    assert ir.to_proto(model).SerializeToString() == before


def test_constants_are_in_every_segment_that_reads_them(rng: np.random.Generator) -> None:
    model, groups = groups_of(
        rng,
        "g_ (float[A, 8] x) => (float[A, 8] y) { to = Constant<value = int64[2] {-1, 8}>()"
        " n = Reshape(x, to) a = MatMul(n, W1) h = Reshape(a, to) y = MatMul(h, W2) }",
    )
    assert [group.segment.inputs for group in groups] == [(), ("a",)]
    for group in groups:
        part = segment_model(model, group.segment)
        assert op_counts(part) == {"Constant": 1, "Reshape": 1}
        assert len(part.graph.inputs) == 1


def test_subgraphs_read_from_outside(rng: np.random.Generator) -> None:
    """Also two deep; what the inner graphs make themselves is no input."""
    model, groups = groups_of(
        rng,
        "g_ (bool c, float[A, 8] x) => (float[A, 8] y) { n = Tanh(x) a = MatMul(n, W1)"
        " b = MatMul(n, W2) i = If(c) <"
        "then_branch = t_ () => (t_y) { t_h = Exp(b) t_y = If(c) <"
        "then_branch = p_ () => (p_y) { p_y = Add(a, t_h) },"
        " else_branch = r_ () => (r_y) { r_y = Identity(n) }> },"
        " else_branch = e_ () => (e_y) { e_y = Identity(b) }> y = MatMul(i, W3) }",
    )
    segment = groups[1].segment
    assert set(segment.inputs) == {"a", "b", "n"}
    asked = {value.name for value in segment_model(model, segment).graph.inputs}
    assert asked == {"c", "a__cut", "b__cut", "n__cut"}
