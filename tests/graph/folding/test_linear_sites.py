"""Which products let a linear before them take the equalization of those after: only exact ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.gated import FOLDABLE, FOLDABLE_ROOTS, NOT_FOLDABLE, M, gated_model
from support.tiny_graphs import run

from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.fold_into_producers import fold_into_producers


@pytest.mark.parametrize("name", FOLDABLE)
def test_every_spelling_is_a_site(rng: np.random.Generator, name: str) -> None:
    model = gated_model(rng, FOLDABLE[name])
    sites = find_linear_sites(find_linears(model).linears)
    readers = {"down", "d2"} if name == "two readers" else {"down"}
    assert set(sites) == readers
    for site in sites.values():
        assert site.name == "up"
        assert set(site.linears) == readers
    run(model, {"x": np.zeros((3, 6), np.float32)})  # a model that ONNX Runtime accepts


@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_everything_else_is_left_alone(rng: np.random.Generator, name: str) -> None:
    model = gated_model(rng, NOT_FOLDABLE[name])
    assert not find_linear_sites(find_linears(model).linears)
    run(model, {"x": np.zeros((3, 6), np.float32)})


def test_an_output_of_the_model_is_not_divided(rng: np.random.Generator) -> None:
    for output in ("up", "p"):
        model = gated_model(rng, FOLDABLE["llama"], outputs=f"down {output}")
        assert not find_linear_sites(find_linears(model).linears)


def test_a_reader_in_a_subgraph_counts(rng: np.random.Generator) -> None:
    text = (
        f"{FOLDABLE['llama']} t = ReduceSum<keepdims = 0>(x) t0 = Greater(t, t) z = If(t0) <"
        "then_branch = t_ () => (t_y) { t_y = Exp(up) },"
        " else_branch = e_ () => (e_y) { e_y = Identity(a) }>"
    )
    assert not find_linear_sites(find_linears(gated_model(rng, text)).linears)


@pytest.mark.parametrize("shaped", [True, False])
def test_a_reshape_is_trusted_where_its_last_dimension_is_known(
    rng: np.random.Generator, shaped: bool
) -> None:
    text = FOLDABLE["rows back and forth"].replace(
        "r = Reshape(up, by_rows)", "to = Shape(a) r = Reshape(up, to)"
    )
    model = gated_model(rng, text)
    value = next(node for node in model.graph if node.name == "r").outputs[0]
    if shaped:
        value.shape = ir.Shape(["A", M])
    assert bool(find_linear_sites(find_linears(model).linears)) == shaped


def test_every_layer_has_its_own(rng: np.random.Generator) -> None:
    text = f"{FOLDABLE['llama']} g2 = MatMul(x, Wg) up2 = MatMul(n, Wu) p2 = Mul(up2, g2)"
    model = gated_model(rng, f"{text} s2 = Sigmoid(g2) p3 = Mul(s2, p2) z = MatMul(p3, We)")
    sites = find_linear_sites(find_linears(model).linears)
    assert {name: site.name for name, site in sites.items()} == {"down": "up"}
    model = gated_model(rng, f"{text} z = MatMul(p2, We)")
    sites = find_linear_sites(find_linears(model).linears)
    assert {name: site.name for name, site in sites.items()} == {"down": "up", "z": "g2"}


@pytest.mark.parametrize("name", [*FOLDABLE, *FOLDABLE_ROOTS])
def test_folding_keeps_the_function(rng: np.random.Generator, name: str) -> None:
    """Exact but for rounding: columns, bias and rows are rounded once more each, 3 2^-24, and so

    are 6-term and 8-term sums, 14 2^-23: 2e-6 of sum|x||w|, below 8 times the largest output.
    """
    model = gated_model(rng, (FOLDABLE | FOLDABLE_ROOTS)[name])
    s = np.exp(2 * rng.standard_normal(M)).astype(np.float32)
    after = model.clone()
    assert fold_into_producers(after, {"up": s}).names == ("up",)
    x = rng.standard_normal((7, 6)).astype(np.float32)
    expected, got = run(model, {"x": x}), run(after, {"x": x})
    for output, array in expected.items():
        assert np.abs(got[output] - array).max() <= 2e-5 * np.abs(array).max()
