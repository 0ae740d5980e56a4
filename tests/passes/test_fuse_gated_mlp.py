from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import Quantized, quantized
from support.tiny_graphs import build, run, weight

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.passes.fuse_gated_mlp import fuse_gated_mlp
from fptq_onnx.passes.fuse_shared_inputs import fuse_shared_inputs

# Spelling of f(g), ending in `a`.
SILU = {
    "sigmoid": "s = Sigmoid(g) a = Mul(g, s)",
    "sigmoid first": "s = Sigmoid(g) a = Mul(s, g)",
    "exp": "m = Neg(g) e = Exp(m) d = Add(e, one) a = Div(g, d)",
    "quick gelu": "a = com.microsoft.QuickGelu<alpha = 1.0>(g)",
}
GELU = {
    "op": 'a = Gelu<approximate = "tanh">(g)',
    "fast gelu": "a = com.microsoft.FastGelu(g)",
    "pow": "p = Pow(g, three) q = Mul(p, c3) r = Add(g, q) s = Mul(r, c2) t = Tanh(s)"
    " v = Add(t, one) w = Mul(g, half) a = Mul(w, v)",
    "products": "p1 = Mul(g, g) p = Mul(p1, g) q = Mul(c3, p) r = Add(g, q) s = Mul(c2, r)"
    " t = Tanh(s) v = Add(one, t) w = Mul(g, v) a = Mul(half, w)",
}
DECLINED = {
    "erf": ('a = Gelu<approximate = "none">(g)', "GELU by erf"),
    "relu": ("a = Relu(g)", "neither SiLU nor GELU"),
    "quick gelu 1.702": ("a = com.microsoft.QuickGelu(g)", "neither SiLU nor GELU"),
    "unknown": ("s = Softsign(g) a = Mul(g, s)", "goes through Softsign"),
    "another input": ("s = Sigmoid(x2) a = Mul(g, s)", "depends on x2"),
}
CONSTANTS = {"one": 1.0, "half": 0.5, "three": 3.0, "c2": 0.7978845608, "c3": 0.044715}


def mlp(rng: np.random.Generator, folder: Path, act: str, end: str = "y = Mul(a, u)") -> Quantized:
    weights = {"Wg": weight(rng, 24, 70), "Wu": weight(rng, 24, 70)}
    used = {name: value for name, value in CONSTANTS.items() if re.search(rf"\b{name}\b", act)}
    weights |= {name: np.array(value, np.float32) for name, value in used.items()}
    order = "g = MatMul(x, Wg) u = MatMul(x, Wu)"
    if end.startswith("swap "):
        order, end = "u = MatMul(x, Wu) g = MatMul(x, Wg)", end.removeprefix("swap ")
    outputs = "float[A, 70] y, float[A, 70] g" if end.endswith("#g") else "float[A, 70] y"
    body = f"g_ (float[A, 24] x, float[A, 70] x2) => ({outputs}) {{ {order} {act} {end[:13]} }}"
    return quantized(build(body, weights, opset=21, ir_version=10, microsoft=True), folder)


def fused(made: Quantized) -> tuple[ir.Model, PassResult]:
    model = made.emitted(emit_custom)
    fuse_shared_inputs(model)
    return model, fuse_gated_mlp(model)


@pytest.mark.parametrize("end", ["y = Mul(a, u)", "y = Mul(u, a)", "swap y = Mul(a, u)"])
@pytest.mark.parametrize(
    ("function", "act"),
    [("silu", act) for act in SILU.values()] + [("gelu_tanh", act) for act in GELU.values()],
    ids=[*SILU, *GELU],
)
def test_every_spelling(
    rng: np.random.Generator, tmp_path: Path, function: str, act: str, end: str
) -> None:
    made = mlp(rng, tmp_path, act, end)
    model, result = fused(made)
    assert result == PassResult(1)
    (node,) = model.graph
    assert node.attributes["gate"].as_string() == function
    feeds = {
        "x": rng.uniform(-1, 1, (9, 24)).astype(np.float32),
        "x2": np.zeros((9, 70), np.float32),
    }
    apart = run(made.emitted(emit_custom), feeds)["y"]
    together = run(model, feeds)["y"]
    # Both compute f in float32 from the same g and u; a few roundings each, those of ORT's own
    # polynomials for Sigmoid and Tanh included.
    np.testing.assert_allclose(together, apart, rtol=2e-5, atol=2e-6)
    assert np.abs(apart).max() > 0.05


@pytest.mark.parametrize(("act", "why"), DECLINED.values(), ids=DECLINED)
def test_declines_with_the_reason(
    rng: np.random.Generator, tmp_path: Path, act: str, why: str
) -> None:
    model, result = fused(mlp(rng, tmp_path, act))
    assert result.changed == 0 and len(result.declined) == 1
    assert why in result.declined[0].reason
    assert any(node.op_type == "Mul" for node in model.graph)


def test_declines_when_the_gate_is_used_elsewhere(rng: np.random.Generator, tmp_path: Path) -> None:
    _, result = fused(mlp(rng, tmp_path, SILU["sigmoid"], "y = Mul(a, u) #g"))
    assert result.changed == 0
    assert "is used elsewhere" in result.declined[0].reason


def test_two_linears_without_a_product_are_left_alone(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    _, result = fused(mlp(rng, tmp_path, "a = Relu(g)", "y = Add(a, u)"))
    assert result == PassResult()
