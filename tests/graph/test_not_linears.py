"""Products that look like linears and are none: each is left out, with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_graphs import build, weight

from fptq_onnx.graph.linears import find_linears

X = "float[A, 4] x"
CASES = {
    "attention scores": (
        "g (float[A, B, 4] q, float[A, 4, B] k) => (float[A, B, B] y) { y = MatMul(q, k) }",
        {},
        "both operands are computed",
    ),
    "rotary table on the left": (
        "g (float[A, 1, B] p) => (float[A, 4, B] y) { y = MatMul(W, p) }",
        {"W": (1, 4, 1)},
        "left operand",
    ),
    "matrix on the left": (
        "g (float[4, B] x) => (float[3, B] y) { y = MatMul(W, x) }",
        {"W": (3, 4)},
        "left operand",
    ),
    "rotary outer product": (
        "g (float[A, 1] p) => (float[A, 4] y) { y = MatMul(p, W) }",
        {"W": (1, 4)},
        "one input channel",
    ),
    "rank 3": (
        "g (float[A, B, 4] x) => (float[A, B, 3] y) { y = MatMul(x, W) }",
        {"W": (2, 4, 3)},
        "rank 3",
    ),
    "rank 1": (f"g ({X}) => (float[A] y) {{ y = MatMul(x, W) }}", {"W": (4,)}, "rank 1"),
    "overridable weight": (
        f"g ({X}, float[4, 3] W) => (float[A, 3] y) {{ y = MatMul(x, W) }}",
        {"W": (4, 3)},
        "also an input",
    ),
    "alpha": (
        f"g ({X}, float[3] c) => (float[A, 3] y) {{ y = Gemm<alpha = 0.5>(x, W, c) }}",
        {"W": (4, 3)},
        "alpha or beta",
    ),
    "beta": (
        f"g ({X}, float[3] c) => (float[A, 3] y) {{ y = Gemm<beta = 2.0>(x, W, c) }}",
        {"W": (4, 3)},
        "alpha or beta",
    ),
    "transposed activation": (
        "g (float[4, A] x) => (float[A, 3] y) { y = Gemm<transA = 1>(x, W) }",
        {"W": (4, 3)},
        "transA",
    ),
    "computed bias": (
        f"g ({X}, float[3] c) => (float[A, 3] y) {{ y = Gemm(x, W, c) }}",
        {"W": (4, 3)},
        "constant bias",
    ),
    "bias by row": (
        "g (float[2, 4] x) => (float[2, 3] y) { y = Gemm(x, W, b) }",
        {"W": (4, 3), "b": (2, 1)},
        "constant bias",
    ),
    "both constant": (
        "g (float[A, 3] x) => (float[A, 3] y) { c = MatMul(V, W) y = Add(x, c) }",
        {"V": (1, 4), "W": (4, 3)},
        "both operands are constant",
    ),
    "fused": (
        "g (float[4, A] x) => (float[A, 3] y) { y = com.microsoft.FusedMatMul<transA = 1>(x, W) }",
        {"W": (4, 3)},
        "not a standard op",
    ),
    "empty": (f"g ({X}) => (float[A, 0] y) {{ y = MatMul(x, W) }}", {"W": (4, 0)}, "empty"),
}


@pytest.mark.parametrize("case", CASES)
def test_left_out_with_a_reason(rng: np.random.Generator, case: str) -> None:
    text, shapes, reason = CASES[case]
    model = build(
        text, {name: weight(rng, *shape) for name, shape in shapes.items()}, microsoft=True
    )
    scan = find_linears(model)
    assert not scan.linears
    assert len(scan.others) == 1
    assert reason in scan.others[0].reason
    assert scan.coverage == "0 of 1 MatMul-like nodes are linears"


@pytest.mark.parametrize(("onnx_type", "dtype"), [("int32", np.int32), ("double", np.float64)])
def test_types_that_are_not_quantized(onnx_type: str, dtype: type) -> None:
    model = build(
        f"g ({onnx_type}[A, 4] x) => ({onnx_type}[A, 3] y) {{ y = MatMul(x, W) }}",
        {"W": np.ones((4, 3), dtype)},
    )
    scan = find_linears(model)
    assert not scan.linears
    assert "not a float type" in scan.others[0].reason


def test_subgraphs_are_reported_and_left_alone(rng: np.random.Generator) -> None:
    model = build(
        "g (bool c, float[A, 4] x) => (float[A, 4] y) {"
        " z = MatMul(x, W)"
        " y = If(c) <then_branch = t () => (float[A, 4] i) { i = MatMul(z, W) },"
        " else_branch = e () => (float[A, 4] j) { j = Identity(z) }> }",
        {"W": weight(rng, 4, 4)},
    )
    scan = find_linears(model)
    assert [linear.name for linear in scan.linears] == ["z"]
    assert [(other.name, "subgraph" in other.reason) for other in scan.others] == [("i", True)]
