"""Small constants in any variant are made anew in every segment; nothing else is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, weight

from fptq_onnx.graph.fixed_values import is_fixed
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.quantization.subgraphs import find_layer_groups, segment_model


def value_of(rng: np.random.Generator, text: str) -> ir.Value:
    model = build(
        f"g_ (float[A, 8] x, int64[1] overridable) => (float[A, 8] y) {{ {text} y = Add(x, v) }}",
        {
            name: array
            for name, array in {
                "one": np.array([1], np.int64),
                "many": weight(rng, 40, 40),
                "eight": weight(rng, 8),
                "overridable": np.array([1], np.int64),
            }.items()
            if name in text
        },
    )
    return next(value for node in model.graph for value in node.outputs if value.name == "v")


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("v = Constant<value = float {1}>()", True),
        ("a = Add(one, one) v = Cast<to = 1>(a)", True),
        ("c = Constant<value = int64[1] {1}>() a = Concat<axis = 0>(c, one) v = Gather(eight, a)",
         True),
        ("v = Exp(x)", False),
        ("s = Shape(x) v = Cast<to = 1>(s)", False),
        ("v = Cast<to = 1>(overridable)", False),
        ("v = Add(many, many)", False),
        ("v = RandomNormal<shape = [1]>()", False),
        ("v = ConstantOfShape(one)", False),
    ],
)  # fmt: skip
def test_what_is_fixed(rng: np.random.Generator, text: str, fixed: bool) -> None:
    assert is_fixed(value_of(rng, text)) == fixed


def test_axes_are_no_inputs_of_a_segment(rng: np.random.Generator) -> None:
    model = build(
        "g_ (float[A, 8] x) => (float[A, 8] y) { ax = Add(one, one) u = Unsqueeze(x, ax)"
        " s = Squeeze(u, ax) a = MatMul(s, W) b = Unsqueeze(a, ax) t = Squeeze(b, ax)"
        " y = MatMul(t, W) }",
        {"one": np.array([1], np.int64), "W": weight(rng, 8, 8)},
    )
    groups = find_layer_groups(model.graph, find_linears(model).linears)
    assert [group.segment.inputs for group in groups] == [(), ("a",)]
    last = segment_model(model, groups[1].segment)
    assert [value.name for value in last.graph.inputs] == ["a__cut"]
    assert {node.op_type for node in last.graph} == {"Add", "Unsqueeze", "Squeeze"}
