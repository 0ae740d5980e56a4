"""Which values have rows that a router picks, and which only look as if."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.experts import experts_model
from support.tiny_graphs import build, weight

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.routed_values import routed_values
from fptq_onnx.quantization.subgraphs import find_layer_groups


def routed_names(model: ir.Model) -> set[str]:
    found = routed_values(model.graph, find_linears(model).linears)
    return {v.name or "" for node in model.graph for v in node.outputs if id(v) in found}


def test_experts_are_routed_and_what_is_put_back_is_not(rng: np.random.Generator) -> None:
    model = experts_model(rng, 2)
    each = ("rows", "up", "act", "down")
    assert routed_names(model) == {f"{name}{e}" for name in each for e in (0, 1)}
    groups = find_layer_groups(model.graph, find_linears(model).linears)
    assert [(group.x, group.routed) for group in groups] == [
        ("n", False), ("rows0", True), ("act0", True), ("rows1", True), ("act1", True),
        ("r", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "routed"),
    [
        ("i = Cast<to = 7>(z) p = Gather(n, i)", {"p"}),
        ("c = Cast<to = 9>(z) p = Compress<axis = 0>(n, c)", {"p"}),
        ("i = Cast<to = 7>(z) q = Gather(n, i) p = Gather(q, zero)", {"q", "p"}),
        ("i = Cast<to = 7>(z) q = Gather(n, i) s = Shape(q) p = Reshape(n, s)", {"q", "s", "p"}),
        # Given to the model, or known from sizes alone: the same in both models.
        ("p = Gather(n, ids)", set()),
        ("s = Shape<start = 0, end = 1>(h) k = Sub(s, one) p = Gather(n, k)", set()),
        # Not which rows, but what is in them.
        ("q = Gather(n, zero) e = Mul(q, h) p = Softmax(e)", set()),
    ],
)
def test_what_picks_rows(rng: np.random.Generator, text: str, routed: set[str]) -> None:
    model = build(
        "g (float[A, 8] x, int64[B] ids) => (float p) { zero = Constant<value_ints = [0]>()"
        " one = Constant<value_ints = [1]>() n = Tanh(x) h = MatMul(n, W)"
        f" z = ReduceMax<keepdims = 0>(h, one) {text} }}",
        {"W": weight(rng, 8, 8)},
    )
    assert routed_names(model) == routed


def test_a_subgraph_reads_the_router_too(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 8] x, bool c) => (float p) { n = Tanh(x) h = MatMul(n, W)"
        " i = If(c) <then_branch = t () => (j) { z = ReduceMax<keepdims = 0>(h, one)"
        " j = Cast<to = 7>(z) }, else_branch = e () => (k) { k = Identity(zero) }>"
        " p = Gather(n, i) }",
        {"W": weight(rng, 8, 8), "one": np.array([1]), "zero": np.array([0])},
    )
    assert routed_names(model) == {"p"}
