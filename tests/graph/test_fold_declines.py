"""Where an equalization must not be folded, because something else would change."""

from __future__ import annotations

import numpy as np
import pytest
from support.norms import NORMS, Norm, normed_graph
from support.tiny_graphs import build, weight

from fptq_onnx.graph.folding.norm_sites import find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears

RMS = NORMS["dynamo RMSNorm"]
RESIDUAL = "n, , , r = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 1.0e-5>(x, skip, g)"
SKIP_INPUTS = NORMS["SkipSimplifiedLayerNormalization"].inputs
GAIN_11K = {"g": np.ones((1, 1, 8), np.float32)}

# (norm, readers, outputs, more weights, what the reason must say)
CASES = {
    "residual add": (
        RMS,
        "q = MatMul(n, Wq) k = Add(x, n)",
        "float q, float k",
        {},
        "also feeds k (Add)",
    ),
    "graph output": (RMS, "q = MatMul(n, Wq)", "float q, float n", {}, "is an output of the model"),
    "output behind a cast": (
        RMS,
        "q = MatMul(n, Wq) k = Cast<to = 1>(n)",
        "float q, float k",
        {},
        "is an output of the model",
    ),
    "reader behind a reshape": (
        RMS,
        "q = MatMul(n, Wq) t2 = Reshape(n, to_rows) k = Tanh(t2)",
        "float q, float k",
        {},
        "also feeds k (Tanh)",
    ),
    "right operand of a product": (
        RMS,
        "q = MatMul(n, Wq) t2 = Transpose<perm = [0, 2, 1]>(n) k = MatMul(n, t2)",
        "float q, float k",
        {},
        "also feeds",
    ),
    "scalar gain of a fused norm": (
        NORMS["LayerNormalization without bias"],
        "q = MatMul(n, Wq)",
        "float q",
        {"g": np.ones(1, np.float32)},
        "has shape (1,), not (8,)",
    ),
    "gain of a fused norm with more axes": (
        NORMS["LayerNormalization without bias"],
        "q = MatMul(n, Wq)",
        "float q",
        GAIN_11K,
        "has shape (1, 1, 8), not (8,)",
    ),
    "transpose between": (
        RMS,
        "t2 = Transpose<perm = [0, 2, 1]>(n) t3 = Transpose<perm = [0, 2, 1]>(t2)"
        " q = MatMul(t3, Wq)",
        "float q",
        {},
        "also feeds t2 (Transpose)",
    ),
    "channels regrouped by a reshape": (
        RMS,
        "t2 = Reshape(n, fours) q = MatMul(t2, W4)",
        "float q",
        {"fours": np.array([-1, 4], np.int64), "W4": np.ones((4, 6), np.float32)},
        "no gain to fold into",
    ),
    "another channel count on the same value": (
        RMS,
        "q = MatMul(n, Wq) t2 = Reshape(n, fours) k = MatMul(t2, W4)",
        "float q, float k",
        {"fours": np.array([-1, 4], np.int64), "W4": np.ones((4, 6), np.float32)},
        "another channel count",
    ),
    "residual output of the norm": (
        Norm(RESIDUAL, ("g",), inputs=SKIP_INPUTS),
        "q = MatMul(r, Wq) k = MatMul(n, Wk)",
        "float q, float k",
        {},
        "not the normalized output of n",
    ),
    "activation": (
        Norm("n = Tanh(x)", ()),
        "q = MatMul(n, Wq)",
        "float q",
        {},
        "made by n (Tanh)",
    ),
    "sum": (
        Norm("s = Sigmoid(x) n = Add(x, s)", ()),
        "q = MatMul(n, Wq)",
        "float q",
        {},
        "the sum n",
    ),
    "sum with a constant, no gain": (
        Norm("s = Sigmoid(x) n = Add(s, g)", ("g",)),
        "q = MatMul(n, Wq)",
        "float q",
        {},
        "made by s (Sigmoid)",
    ),
    "input plus a constant": (
        Norm("n = Add(x, g)", ("g",)),
        "q = MatMul(n, Wq)",
        "float q",
        {},
        "the sum n",
    ),
    "value before the bias read elsewhere": (
        NORMS["decomposed LayerNorm"],
        "q = MatMul(n, Wq) k = Tanh(w)",
        "float q, float k",
        {},
        "before the bias of n feeds other nodes",
    ),
    "value before the bias is an output": (
        NORMS["decomposed LayerNorm"],
        "q = MatMul(n, Wq)",
        "float q, float w",
        {},
        "before the bias of n feeds other nodes",
    ),
    "model input": (
        Norm("unused = Tanh(x)", ()),
        "q = MatMul(x, Wq)",
        "float q, float unused",
        {},
        "straight from a model input",
    ),
    "rounded on the way": (
        RMS,
        "t1 = Cast<to = 7>(n) t2 = Cast<to = 1>(t1) q = MatMul(t2, Wq)",
        "float q",
        {},
        "made by t1 (Cast)",
    ),
    "rounded for another reader": (
        RMS,
        "q = MatMul(n, Wq) t1 = Cast<to = 7>(n) t2 = Cast<to = 1>(t1) k = MatMul(t2, Wk)",
        "float q, float k",
        {},
        "also feeds t1 (Cast)",
    ),
    "integer gain": (
        Norm("i = Cast<to = 6>(x) m = Mul(i, g) n = Cast<to = 1>(m)", ()),
        "q = MatMul(n, Wq)",
        "float q",
        {"g": np.arange(8, dtype=np.int32)},
        "made by m (Mul)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_declined_with_the_reason(rng: np.random.Generator, case: str) -> None:
    norm, readers, outputs, more, reason = CASES[case]
    model = normed_graph(rng, norm, readers=readers, outputs=outputs, more=more)
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, str), site
    assert reason in site


def test_a_computed_gain(rng: np.random.Generator) -> None:
    for text, reason in (
        ("n = LayerNormalization(x, s)", "is not a constant"),
        ("h = Tanh(x) n = Mul(h, s)", "no gain to fold"),
    ):
        model = normed_graph(
            rng,
            Norm(text, ()),
            readers="q = MatMul(n, Wq)",
            outputs="float q",
            inputs=", float[8] s",
        )
        site = find_fold_sites(find_linears(model).linears)["q"]
        assert isinstance(site, str)
        assert reason in site


def test_a_value_that_a_subgraph_reads(rng: np.random.Generator) -> None:
    model = build(
        "g_ (bool c, float[A, 8] x) => (float[A, 6] q, float[A, 8] k) {"
        " n = LayerNormalization(x, g) q = MatMul(n, Wq)"
        " k = If(c) <then_branch = t () => (float[A, 8] i) { i = Tanh(n) },"
        " else_branch = e () => (float[A, 8] j) { j = Tanh(x) }> }",
        {"g": weight(rng, 8), "Wq": weight(rng, 8, 6)},
    )
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, str)
    assert "also feeds i (Tanh)" in site


def test_a_weight_product_with_the_gain_on_the_wrong_side(rng: np.random.Generator) -> None:
    """A linear whose input is right but whose node reads the value as a weight too."""
    model = build(
        "g_ (float[8, 8] x) => (float[8, 8] q, float[8, 8] k) {"
        " n = LayerNormalization(x, g) q = MatMul(n, Wq) k = MatMul(q, n) }",
        {"g": weight(rng, 8), "Wq": weight(rng, 8, 8)},
    )
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, str)
    assert "also feeds k (MatMul)" in site
