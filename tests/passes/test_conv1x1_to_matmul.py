"""Convolutions of single tokens become linears; others stay, with the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import op_counts, raw, run, weight

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.conv1x1_to_matmul import conv1x1_to_matmul
from fptq_onnx.passes.normalize import normalize

X = "float[B, 8, S] x"
ROWS = "float[B, S, 8] x"


def swap(x: str, out: str) -> str:
    return f" {out} = Transpose<perm = [0, 2, 1]>({x})"


# (graph, linears, Transposes left)
OPENED = {
    "alone": (f"g ({X}) => (float[B, 6, S] y) {{ y = Conv(x, W, b) }}", 1, 2),
    "without a bias": (f"g ({X}) => (float[B, 6, S] y) {{ y = Conv<pads = [0, 0]>(x, W) }}", 1, 2),
    "between the model's transposes": (
        f"g ({ROWS}) => (float[B, S, 6] y) {{ {swap('x', 't')} c = Conv<kernel_shape = [1]>"
        f"(t, W, b) {swap('c', 'r')} y = Relu(r) }}",
        1,
        0,
    ),
    "read both ways": (
        f"g ({ROWS}) => (float[B, S, 6] y, float[B, 6, S] z) {{ {swap('x', 't')}"
        f" z = Conv(t, W, b) {swap('z', 'r')} y = Relu(r) }}",
        1,
        1,
    ),
    "its transpose is an output": (
        f"g ({X}) => (float[B, S, 6] y) {{ c = Conv(x, W, b) {swap('c', 'y')} }}",
        1,
        3,
    ),
    "two in a row": (
        f"g ({X}) => (float[B, 6, S] y) {{ c = Conv(x, W, b) y = Conv(c, V, b) }}",
        2,
        2,
    ),
}


@pytest.mark.parametrize("case", OPENED)
def test_opened_and_the_same(rng: np.random.Generator, case: str) -> None:
    body, count, transposes = OPENED[case]
    weights = {"W": weight(rng, 6, 8, 1), "b": weight(rng, 6), "V": weight(rng, 6, 6, 1)}
    model = raw(body, {name: array for name, array in weights.items() if name in body})
    shape = (2, 8, 5) if X in body else (2, 5, 8)
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    before = run(model, feeds)
    assert conv1x1_to_matmul(model).changed == count
    assert len(find_linears(model).linears) == count and not find_linears(model).others
    assert op_counts(model).get("Transpose", 0) == transposes
    after = run(model, feeds)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=4e-6)
    assert conv1x1_to_matmul(model).changed == 0


def test_a_norm_before_it_takes_its_equalization(rng: np.random.Generator) -> None:
    """The transposes between are gone, and with them what hid the norm."""
    body = (
        f"g ({ROWS}) => (float[B, 6, S] y) {{ n = LayerNormalization(x, g, h) {swap('n', 't')}"
        f" y = Conv(t, W) }}"
    )
    arrays = {"W": weight(rng, 6, 8, 1), "g": weight(rng, 8), "h": weight(rng, 8)}
    model = raw(body, arrays)
    normalize(model)
    sites = find_fold_sites(find_linears(model).linears)
    assert [isinstance(site, FoldSite) for site in sites.values()] == [True]


STAYS = {
    "images": ("float[B, 8, H, S] x", "Conv(x, W)", (6, 8, 1, 1), "of images"),
    "groups": (X, "Conv<group = 2>(x, W)", (6, 4, 1), "in 2 groups"),
    "strides": (X, "Conv<strides = [2]>(x, W)", (6, 8, 1), "leaves out or adds"),
    "pads": (X, "Conv<pads = [1, 0]>(x, W)", (6, 8, 1), "leaves out or adds"),
    "an activation inside": (
        X,
        'com.microsoft.FusedConv<activation = "Relu">(x, W)',
        (6, 8, 1),
        "inside FusedConv",
    ),
    "a larger kernel": (X, "Conv(x, W)", (6, 8, 3), None),
    "a factor for each channel": (X, "Conv<group = 8>(x, W)", (8, 1, 1), None),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays_with_a_reason(rng: np.random.Generator, case: str) -> None:
    inputs, op, shape, reason = STAYS[case]
    model = raw(f"g ({inputs}) => (float y) {{ y = {op} }}", {"W": weight(rng, *shape)})
    assert conv1x1_to_matmul(model).changed == 0
    scan = find_linears(model)
    assert not scan.linears
    if reason is None:
        assert not scan.others
    else:
        (other,) = scan.others
        assert reason in other.reason and other.op_type.endswith("Conv")


def test_a_weight_computed_while_it_runs_stays() -> None:
    text = "g (float[B, 8, S] x, float[6, 8, 1] w) => (float y) { y = Conv(x, w) }"
    model: ir.Model = raw(text, {})
    assert conv1x1_to_matmul(model).changed == 0
    (other,) = find_linears(model).others
    assert "no float constant" in other.reason
