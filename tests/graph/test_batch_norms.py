"""BatchNormalization of rows takes an equalization; of more axes it scales other channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, run, weight

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.shapes.rank import rank_of
from fptq_onnx.passes.fold_into_producers import fold_into_producers

NORM = "n = BatchNormalization<epsilon = 1.0e-5>(r, s, b, m, v)"
FOLDED = {
    "after a relu": f"h = Gemm(x, W, c) r = Relu(h) {NORM} y = Gemm(n, V)",
    "before a relu": f"r = Gemm(x, W, c) {NORM} a = Relu(n) y = Gemm(a, V)",
    "without shapes": f"h = MatMul(x, W) e = Add(h, c) r = Gelu(e) {NORM} y = MatMul(n, V)",
    "two readers": f"r = MatMul(x, W) {NORM} y = MatMul(n, V) z = MatMul(n, V)",
}


def model_of(rng: np.random.Generator, nodes: str, x: str = "float[A, 8] x") -> ir.Model:
    arrays = {
        "W": weight(rng, 8, 6), "c": weight(rng, 6), "V": weight(rng, 6, 4),
        "s": 1 + weight(rng, 6), "b": weight(rng, 6), "m": weight(rng, 6),
        "v": 1 + weight(rng, 6) ** 2,
    }  # fmt: skip
    outputs = "float y, float z" if " z = " in nodes else "float y"
    used = {name: array.astype(np.float32) for name, array in arrays.items()
            if f" {name}," in nodes or f" {name})" in nodes}  # fmt: skip
    return build(f"g ({x}) => ({outputs}) {{ {nodes} }}", used, opset=20)


@pytest.mark.parametrize("case", FOLDED)
def test_it_takes_an_equalization(rng: np.random.Generator, case: str) -> None:
    model = model_of(rng, FOLDED[case])
    site = find_fold_sites(find_linears(model).linears)["y"]
    assert isinstance(site, FoldSite), site
    assert [operand.constant.name for operand in site.operands] == ["s", "b"]
    feeds = {"x": rng.standard_normal((5, 8)).astype(np.float32)}
    before = run(model, feeds)
    fold_into_producers(model, {"n": (0.1 + 4 * rng.random(6)).astype(np.float32)})
    for key, value in run(model, feeds).items():
        assert np.abs(value - before[key]).max() <= 32 * 2.0**-24 * np.abs(before[key]).max(), key


DECLINED = {
    "rows of rows": (
        "float[A, 6, 8] x",
        f"r = MatMul(x, W) {NORM} y = MatMul(n, V)",
        "with 3 axes: it scales the second axis",
    ),
    "unknown rank": ("float x", f"r = MatMul(x, W) {NORM} y = MatMul(n, V)", "of unknown rank"),
    "training": (
        "float[A, 8] x",
        f"r = MatMul(x, W) {NORM.replace('<', '<training_mode = 1, ')} y = MatMul(n, V)",
        "in training mode",
    ),
    "the running mean": (
        "float[A, 8] x",
        "r = MatMul(x, W) n, o, p = BatchNormalization<training_mode = 1>(r, s, b, m, v)"
        " y = MatMul(n, V)",
        "in training mode",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_declined_with_the_reason(rng: np.random.Generator, case: str) -> None:
    x, nodes, reason = DECLINED[case]
    model = model_of(rng, nodes, x)
    if case == "unknown rank":
        model.graph.inputs[0].shape = None
    site = find_fold_sites(find_linears(model).linears)["y"]
    assert isinstance(site, str) and reason in site, site


def test_ranks_are_followed(rng: np.random.Generator) -> None:
    """Sums have the higher rank of both, where both are known; products that of the rows."""
    model = build(
        "g (float[A, 8] x, float[B, A, 8] t, float u)"
        " => (float y, int64[2] i, int64[3] j) {"
        " a = Add(x, t) b = Sigmoid(a) c = MatMul(b, W) d = Add(x, u) e = Gemm(x, W)"
        " f = MatMul(t, a) g = Add(c, d) y = ReduceSum<keepdims = 0>(g) i = Shape(e)"
        " j = Shape(f) }",
        {"W": weight(rng, 8, 8)},
    )
    model.graph.inputs[2].shape = None
    found = {node.outputs[0].name: rank_of(node.outputs[0]) for node in model.graph}
    assert found == {"a": 3, "b": 3, "c": 3, "d": None, "e": 2, "f": None, "g": None, "y": 0,
                     "i": 1, "j": 1}  # fmt: skip
