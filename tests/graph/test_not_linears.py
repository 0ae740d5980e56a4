"""Products that look like linears and are none: each is left out, with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny_graphs import build, weight

from fptq_onnx.graph.linears.linears import find_linears

X = "float[A, 4] x"
# [1, 1, A]: 0, 1, 2 and so on, as many as x has rows.
COUNTED = (
    "rows = Shape<start = 0, end = 1>(x) at = Constant<value_int = 0>()"
    " by = Constant<value_int = 1>() count = Squeeze(rows) i = Range(at, count, by)"
    " f = Cast<to = 1>(i) axes = Constant<value_ints = [0, 1]>() p = Unsqueeze(f, axes)"
)
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
    "an expert's": (
        f"g ({X}, int64[B] e) => (float[B, A, 3] y) {{ w = Gather(W, e) y = MatMul(x, w) }}",
        {"W": (2, 4, 3)},
        "picked from W while the model runs",
    ),
    "an op that is not looked through": (
        f"g ({X}) => (float[A, 3] y) {{ a = Constant<value = int64 {{0}}>() w = CumSum(W, a)"
        " v = Neg(w) y = MatMul(x, v) }",
        {"W": (4, 3)},
        "made by CumSum",
    ),
    "a weight expanded to the size of a batch": (
        "g (float[A, B, 4] x) => (float[A, B, 3] y) { s = Shape<start = 0, end = 1>(x)"
        " rest = Constant<value_ints = [4, 3]>() to = Concat<axis = 0>(s, rest)"
        " w = Expand(W, to) y = MatMul(x, w) }",
        {"W": (1, 4, 3)},
        "its weight is made by Expand, which is not looked through",
    ),
    "positions counted from sizes": (
        f"g ({X}) => (float[B, 4, A] y) {{ {COUNTED} many = Constant<value_ints = [2, 4, 1]>()"
        " w = Expand(W, many) y = MatMul(w, p) }",
        {"W": (1, 4, 1)},
        "left operand",
    ),
    "rotary table expanded to a batch, times positions counted from sizes": (
        f"g ({X}) => (float[B, 4, A] y) {{ {COUNTED} n = Shape<start = 0, end = 1>(x)"
        " rest = Constant<value_ints = [4, 1]>() to = Concat<axis = 0>(n, rest)"
        " w = Expand(W, to) y = MatMul(w, p) }",
        {"W": (1, 4, 1)},
        "left operand",
    ),
    "positions counted from sizes times what is computed": (
        f"g ({X}) => (float[1, A, A] y) {{ {COUNTED} t = Constant<value_ints = [0]>()"
        " u = Unsqueeze(x, t) a = ReduceSum(u, t) m = Constant<value_ints = [2]>()"
        " v = ReduceSum(a, m) y = MatMul(v, p) }",
        {},
        "both operands are computed",
    ),
    "positions": (  # a rotary table: frequencies [F, 1] times positions [1, A]
        "g (float[F, 1] f, float[A, 3] x) => (float[F, A] y) { s = Shape<end = 1>(x)"
        " n = Squeeze(s) z = Constant<value = int64 {0}>() o = Constant<value = int64 {1}>()"
        " r = Range(z, n, o) b = Constant<value = int64[1] {0}>() u = Unsqueeze(r, b)"
        " p = Cast<to = 1>(u) y = MatMul(f, p) }",
        {},
        "both operands are computed",
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


MICROSOFT = {
    "PackedAttention": ("x, W, b, i, i", {"W": (4, 9), "b": (9,)}),
    "LongformerAttention": (
        "x, W, b, x, V, c, i",
        {"W": (4, 12), "b": (12,), "V": (4, 12), "c": (12,)},
    ),
    "DecoderAttention": ("x, x, W, V, b", {"W": (4, 4), "V": (4, 8), "b": (12,)}),
    "DecoderMaskedSelfAttention": ("x, W, b", {"W": (4, 12), "b": (12,)}),
    "GemmFastGelu": ("x, W, b", {"W": (4, 3), "b": (3,)}),
    "FusedMatMulActivation": ("x, W", {"W": (4, 3)}),
    "NotYetKnown": ("x, W", {"W": (4, 3)}),
}


@pytest.mark.parametrize("op", MICROSOFT)
def test_weights_inside_ops_of_onnxruntime(rng: np.random.Generator, op: str) -> None:
    inputs, shapes = MICROSOFT[op]
    text = f"g ({X}, int32[A] i) => (float[A, 3] y) {{ y = com.microsoft.{op}({inputs}) }}"
    arrays = {name: weight(rng, *shape) for name, shape in shapes.items()}
    (other,) = find_linears(build(text, arrays, microsoft=True)).others
    assert other.reason == f"its weight is inside {op}, which is not taken apart"


def test_weights_inside_ops_of_others(rng: np.random.Generator) -> None:
    model = build(
        f"g ({X}) => (float[A, 3] y) {{ y = own.Product(x, W) }}", {"W": weight(rng, 4, 3)}
    )
    (other,) = find_linears(model).others
    assert (other.op_type, other.reason) == (
        "Product",
        "its matrix is read by Product of the domain own, an unknown op",
    )


@pytest.mark.parametrize(
    ("op", "shape"),
    [("com.microsoft.BiasGelu", (4,)), ("com.microsoft.NotYetKnown", (1, 4)),
     ("com.microsoft.RelativePositionBias", (8, 4))],
)  # fmt: skip
def test_tables_and_vectors_are_no_weights(
    rng: np.random.Generator, op: str, shape: tuple[int, ...]
) -> None:
    text = f"g ({X}) => (float[A, 4] y) {{ y = {op}(x, W) }}"
    assert not find_linears(build(text, {"W": weight(rng, *shape)}, microsoft=True)).others


def test_a_low_rank_addition_belongs_to_the_weight(rng: np.random.Generator) -> None:
    """LoRA left unmerged: the sum is the weight, as the graph computes it."""
    shapes = {"W": (4, 3), "A": (4, 2), "B": (2, 3)}
    weights = {name: weight(rng, *shape) for name, shape in shapes.items()}
    model = build(
        f"g ({X}) => (float[A, 3] y) {{ d = MatMul(A, B) n = Neg(d) w = Sub(W, n)"
        " y = MatMul(x, w) }",
        weights,
    )
    scan = find_linears(model)
    (linear,) = scan.linears
    expected = weights["W"] + weights["A"] @ weights["B"]
    np.testing.assert_allclose(linear.weight.load(), expected, rtol=0, atol=1e-6)
    assert [other.reason for other in scan.others] == ["both operands are constant"]


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
