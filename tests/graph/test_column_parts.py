"""Gate and up in one linear: only up's columns take the equalization of down's input."""

from __future__ import annotations

import numpy as np
import pytest
from support.gated import FOLDABLE_PARTS, NOT_FOLDABLE_PARTS, M, gated_model
from support.tiny_graphs import run

from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.fold_into_producers import fold_into_producers


@pytest.mark.parametrize("name", FOLDABLE_PARTS)
def test_a_part_of_a_linear_is_a_site(rng: np.random.Generator, name: str) -> None:
    model = gated_model(rng, FOLDABLE_PARTS[name])
    (site,) = find_linear_sites(find_linears(model).linears).values()
    both = next(node for node in model.graph if node.name in ("both_", "both")).name
    first = 0 if name == "up first" else M
    assert (site.name, site.linears, site.n) == (both, ("down",), 2 * M)
    assert site.spread.tolist() == list(range(first, first + M)) and not site.through_attention
    s = np.exp(np.linspace(-3, 3, M)).astype(np.float32)
    wanted = np.ones(2 * M, np.float32)
    wanted[first : first + M] = s
    np.testing.assert_array_equal(site.smoothing_scales(s), wanted)


@pytest.mark.parametrize("name", FOLDABLE_PARTS)
def test_folding_keeps_the_function(rng: np.random.Generator, name: str) -> None:
    """Within the bound of test_column_sites.py: each operand is rounded once more."""
    model = gated_model(rng, FOLDABLE_PARTS[name])
    (site,) = find_linear_sites(find_linears(model).linears).values()
    s = np.exp(np.linspace(-3, 3, M)).astype(np.float32)
    after = model.clone()
    assert fold_into_producers(after, {site.name: s}).names == (site.name,)
    x = rng.standard_normal((7, 6)).astype(np.float32)
    expected, found = run(model, {"x": x})["down"], run(after, {"x": x})["down"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * 8 * np.abs(expected).max())
    linear, before = find_linears(after).by_name()[site.name], find_linears(model).by_name()
    unchanged = np.setdiff1d(np.arange(2 * M), site.spread)
    np.testing.assert_array_equal(
        linear.weight.load()[:, unchanged], before[site.name].weight.load()[:, unchanged]
    )
    changed = linear.weight.load()[:, site.spread]
    assert (changed != before[site.name].weight.load()[:, site.spread]).any()


@pytest.mark.parametrize("name", NOT_FOLDABLE_PARTS)
def test_everything_else_is_left_alone(rng: np.random.Generator, name: str) -> None:
    model = gated_model(rng, NOT_FOLDABLE_PARTS[name])
    assert not find_linear_sites(find_linears(model).linears)
    run(model, {"x": np.zeros((2 * M, 6), np.float32)})  # a model that ONNX Runtime accepts
