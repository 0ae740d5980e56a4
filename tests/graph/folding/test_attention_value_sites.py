"""Which attentions let v_proj take the equalization of o_proj: exact ones, in every spelling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.attention import FOLDABLE, GROUPS, HEADS, NOT_FOLDABLE, SIZE, K, attention_model
from support.tiny_graphs import run

from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.fold_into_producers import fold_into_producers


def _feeds(rng: np.random.Generator, model: ir.Model) -> dict[str, NDArray[np.float32]]:
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        feeds[value.name or ""] = rng.standard_normal(value.shape.numpy()).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_keeps_the_function(rng: np.random.Generator, name: str) -> None:
    """Exact but for rounding: a few of 2^-24 and sums of at most 32 terms, far below 2e-5."""
    model = attention_model(rng, FOLDABLE[name])
    sites = find_linear_sites(find_linears(model).linears)
    assert set(sites) == {"o"}
    site = sites["o"]
    s = np.exp(rng.standard_normal(K)).astype(np.float32)
    tied = site.tied(s).astype(np.float32)
    after = model.clone()
    assert fold_into_producers(after, {site.name: tied}).names == (site.name,)
    feeds = _feeds(rng, model)
    expected = run(model, feeds)
    # Cached values are divided too: what the folded model cached earlier.
    of_groups = tied.reshape(HEADS, SIZE)[:: HEADS // GROUPS, None, :]
    if "past" in feeds:
        feeds["past"] = (feeds["past"] / of_groups).astype(np.float32)
    got = run(after, feeds)
    for output, array in expected.items():
        back = got[output] * of_groups if output == "present" else got[output]
        assert np.abs(back - array).max() <= 2e-5 * np.abs(array).max(), output


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_column_in_the_wrong_place_is_found(rng: np.random.Generator, name: str) -> None:
    """The test above can fail: other smoothing scales of one channel change the output."""
    model = attention_model(rng, FOLDABLE[name])
    site = find_linear_sites(find_linears(model).linears)["o"]
    s = np.ones(K, np.float32)
    s[3] = 4.0  # not tied: where two heads share a column it cannot be undone
    s = site.tied(s).astype(np.float32)
    after = model.clone()
    fold_into_producers(after, {site.name: s})
    weights = find_linears(after).by_name()
    divided = site.smoothing_scales(s)
    before = find_linears(model).by_name()[site.name].weight.load()
    assert np.allclose(weights[site.name].weight.load() * divided, before, rtol=1e-6)
    assert (divided != 1).sum() == 1
    assert set(np.flatnonzero(divided != 1)) == {site.spread[3]}


@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_everything_else_is_left_alone(rng: np.random.Generator, name: str) -> None:
    model = attention_model(rng, NOT_FOLDABLE[name])
    assert not find_linear_sites(find_linears(model).linears)
    run(model, _feeds(rng, model))


def test_heads_of_one_group_are_tied(rng: np.random.Generator) -> None:
    model = attention_model(rng, FOLDABLE["grouped"])
    site = find_linear_sites(find_linears(model).linears)["o"]
    head = np.arange(SIZE)
    assert site.spread.tolist() == [*head, *head, *(head + SIZE), *(head + SIZE)]
    tied = site.tied(np.arange(float(K)))
    assert tied.tolist() == [*(head + 8), *(head + 8), *(head + 24), *(head + 24)]
    assert site.smoothing_scales(tied.astype(np.float32)).tolist() == [*(head + 8), *(head + 24)]
