"""Norms whose gain can take an equalization, in every form exporters write."""

from __future__ import annotations

import numpy as np
import pytest
from support.norms import NORMS, Norm, normed_feeds, normed_graph
from support.tiny_graphs import run

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_form_is_a_site(rng: np.random.Generator, name: str) -> None:
    norm = NORMS[name]
    model = normed_graph(rng, norm)
    sites = find_fold_sites(find_linears(model).linears)
    assert set(sites) == {"q", "u", "v"}
    for site in sites.values():
        assert isinstance(site, FoldSite), site
        assert site.name == "n"
        assert set(site.linears) == {"q", "u", "v"}
        assert len(site.linears) == 3
        assert tuple(operand.constant.name for operand in site.operands) == norm.gains
        assert all(operand.constant.shape == (8,) for operand in site.operands)
    run(model, normed_feeds(rng, norm))  # the form is one that ONNX Runtime accepts


@pytest.mark.parametrize(
    "between",
    [
        "t2 = Cast<to = 1>(n)",
        "t2 = Identity(n)",
        "t2 = Reshape(n, to_rows)",
        "t1 = Cast<to = 10>(n) t2 = Cast<to = 1>(t1)",
        "t1 = Unsqueeze(n, zero) t2 = Squeeze(t1, zero)",
        "t2 = Flatten<axis = 2>(n)",
    ],
)
def test_what_may_stand_between(rng: np.random.Generator, between: str) -> None:
    model = normed_graph(
        rng,
        NORMS["dynamo RMSNorm"],
        readers=f"{between} q = MatMul(t2, Wq) k = MatMul(n, Wk)",
        outputs="float q, float k",
        more={"zero": np.array([0], np.int64)},
    )
    sites = find_fold_sites(find_linears(model).linears)
    assert isinstance(sites["q"], FoldSite), sites["q"]
    assert sites["q"] == sites["k"]
    assert set(sites["q"].linears) == {"q", "k"}


def test_reading_the_shape_is_no_obstacle(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng,
        NORMS["dynamo RMSNorm"],
        readers="q = MatMul(n, Wq) k = Shape(n)",
        outputs="float q, int64[3] k",
    )
    assert isinstance(find_fold_sites(find_linears(model).linears)["q"], FoldSite)


def test_two_norms_are_two_sites_even_with_a_common_one(rng: np.random.Generator) -> None:
    """gemma: every `1 + w` reads the same scalar one; that is not a shared gain."""
    norm = NORMS["gemma 1 + w"]
    model = normed_graph(
        rng,
        Norm(
            f"{norm.text} w2 = Add(one, g2) n2 = Mul(h, w2)",
            ("g", "g2"),
            norm.scalars,
        ),
        readers="q = MatMul(n, Wq) k = MatMul(n2, Wk)",
        outputs="float q, float k",
    )
    sites = find_fold_sites(find_linears(model).linears)
    names = {key: site.name for key, site in sites.items() if isinstance(site, FoldSite)}
    assert names == {"q": "n", "k": "n2"}, sites


def test_a_gain_stored_in_half_precision(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng,
        Norm("gg = Cast<to = 1>(g) n = SimplifiedLayerNormalization(x, gg)", ()),
        readers="q = MatMul(n, Wq)",
        outputs="float q",
        more={"g": np.ones(8, np.float16)},
    )
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, FoldSite)
    assert site.operands[0].constant.dtype.numpy() == np.float32
