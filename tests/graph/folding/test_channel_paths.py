"""What may stand between a norm and its linears: folds through it change nothing but rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.norms import NORMS, Norm, normed_feeds, normed_graph
from support.tiny_graphs import run

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.shapes.rank import is_not_last
from fptq_onnx.passes.fold_into_producers import fold_into_producers

RMS = NORMS["dynamo RMSNorm"]
INTS = {
    "first": np.array(0, np.int64),
    "zero": np.array([0], np.int64),
    "one_": np.array([1], np.int64),
    "two_": np.array([2], np.int64),
    "sizes": np.array([1, 2], np.int64),
    "regroup": np.array([0, 0, 2, 4], np.int64),
    "half": np.array([0.5], np.float32),
    "pairs": np.array([[0, 1], [1, 0]], np.int64),
    "firsts": np.array([[1], [0]], np.int64),
    "triples": np.array([[0, 1, 2], [1, 0, 3]], np.int64),
}


def sites_and_models(
    rng: np.random.Generator, norm: Norm, readers: str, outputs: str, **more: np.ndarray
) -> tuple[dict[str, FoldSite | str], ir.Model]:
    model = normed_graph(rng, norm, readers=readers, outputs=outputs, more={**INTS, **more})
    return find_fold_sites(find_linears(model).linears), model


def assert_fold_is_exact(rng: np.random.Generator, norm: Norm, model: ir.Model, name: str) -> None:
    feeds = normed_feeds(rng, norm)
    before = run(model, feeds)
    scales = {name: (0.1 + 4 * rng.random(8)).astype(np.float32)}
    assert fold_into_producers(model, scales).names == (name,)
    for key, value in run(model, feeds).items():
        # A gain, a weight and a product rounded once more each: 4 ulp of the largest terms.
        assert np.abs(value - before[key]).max() <= 32 * 2.0**-24 * np.abs(before[key]).max(), key


# (what stands between n and the linear q, the type of q)
PATHS = {
    "last token by Gather": ("t = Gather<axis = 1>(n, first) q = MatMul(t, Wq)", "float[A, 6] q"),
    "last token, negative axis": (
        "t = Gather<axis = -2>(n, first) q = MatMul(t, Wq)",
        "float[A, 6] q",
    ),
    "tokens picked by GatherND": ("t = GatherND(n, pairs) q = MatMul(t, Wq)", "float[2, 6] q"),
    "tokens picked in each row": (
        "t = GatherND<batch_dims = 1>(n, firsts) q = MatMul(t, Wq)",
        "float[A, 6] q",
    ),
    "Slice of rows": ("t = Slice(n, zero, one_, one_) q = MatMul(t, Wq)", "float[A, 1, 6] q"),
    "batch and sequence change places": (
        "t = Transpose<perm = [1, 0, 2]>(n) q = MatMul(t, Wq)",
        "float[S, A, 6] q",
    ),
    "one factor": ("t = Mul(half, n) q = MatMul(t, Wq)", "float[A, S, 6] q"),
    "one smoothing scale": ("t = Div(n, half) q = MatMul(t, Wq)", "float[A, S, 6] q"),
    "mean of the rows": ("t = ReduceMean(n, one_) q = MatMul(t, Wq)", "float[A, 1, 6] q"),
    "Split by rows": (
        "a1, a2 = Split<axis = 1>(n, sizes) q = MatMul(a1, Wq) k = MatMul(a2, Wk)",
        "float[A, 1, 6] q, float[A, 2, 6] k",
    ),
    "two in a row, and a reader before": (
        "t = Transpose<perm = [1, 0, 2]>(n) t2 = Gather<axis = 0>(t, first) q = MatMul(t2, Wq)"
        " k = MatMul(n, Wk)",
        "float[A, 6] q, float[A, S, 6] k",
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_fold_goes_through(rng: np.random.Generator, path: str) -> None:
    readers, outputs = PATHS[path]
    norm = Norm(RMS.text, RMS.gains, RMS.scalars, 20)
    sites, model = sites_and_models(rng, norm, readers, outputs)
    assert isinstance(sites["q"], FoldSite), sites["q"]
    assert_fold_is_exact(rng, norm, model, "n")


def test_a_fold_goes_through_the_rows_picked_for_experts(rng: np.random.Generator) -> None:
    """As torch writes `x.view(-1, size)[None, rows]`; nothing but the router tells the size."""
    norm = Norm(RMS.text, RMS.gains, RMS.scalars, 20)
    readers = (
        "whole = Shape(n) size = Gather<axis = 0>(whole, last) last_ = Unsqueeze(size, zero)"
        " flat = Concat<axis = 0>(rest, last_) t = Reshape(n, flat) k = MatMul(t, Wk)"
        " t1 = Unsqueeze(t, zero) t2 = Gather<axis = 1>(t1, rows) t3 = Reshape(t2, flat)"
        " q = MatMul(t3, Wq)"
    )
    more = {"last": np.array(2, np.int64), "rest": np.array([-1]), "rows": np.array([2, 0])}
    sites, model = sites_and_models(rng, norm, readers, "float[2, 6] q, float[R, 6] k", **more)
    assert isinstance(sites["q"], FoldSite), sites["q"]
    model.graph.inputs[0].shape = None
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, FoldSite) and set(site.linears) == {"q", "k"}, site
    assert_fold_is_exact(rng, norm, model, "n")


def test_a_positive_axis_needs_a_rank(rng: np.random.Generator) -> None:
    """Without one, axis 1 might be the channels'."""
    readers, outputs = PATHS["last token by Gather"]
    _, model = sites_and_models(rng, RMS, readers, outputs)
    model.graph.inputs[0].shape = None
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, str) and "also feeds t (Gather)" in site


MIXED = {
    "rows become channels": (
        "t = Transpose<perm = [0, 2, 1]>(n) t2 = Gather<axis = 1>(t, first) q = MatMul(t2, Ws)",
        "float[A, 6] q",
    ),
    "some channels": (
        "t = Slice(n, zero, two_, two_) t2 = Gather<axis = 2>(n, zero) q = MatMul(t, W2)",
        "float[A, S, 6] q",
    ),
    "numbers picked by GatherND": (
        "t = GatherND(n, triples) t2 = Concat<axis = 0>(t, t) q = MatMul(t2, W4)",
        "float[6] q",
    ),
    "a regrouping reshape, then a choice": (
        "t = Reshape(n, regroup) t2 = Gather<axis = 2>(t, first) q = MatMul(t2, W4)",
        "float[A, S, 6] q",
    ),
    "mean of the channels": (
        "t = ReduceMean<keepdims = 1>(n, two_) t2 = Concat<axis = -1>(t, n) q = MatMul(t2, W9)",
        "float[A, S, 6] q",
    ),
}


@pytest.mark.parametrize("path", MIXED)
def test_no_fold_where_channels_mix_or_nothing_tells(rng: np.random.Generator, path: str) -> None:
    readers, outputs = MIXED[path]
    more = {
        "Ws": np.ones((3, 6), np.float32),
        "W2": np.ones((2, 6), np.float32),
        "W4": np.ones((4, 6), np.float32),
        "W9": np.ones((9, 6), np.float32),
    }
    sites, _ = sites_and_models(rng, RMS, readers, outputs, **more)
    assert isinstance(sites["q"], str)


SHARED = {
    "another node reads the gain": (
        RMS,
        "q = MatMul(n, Wq) k = Mul(x, g)",
        "float[A, S, 6] q, float[A, S, 8] k",
        {},
    ),
    "two norms of one gain": (
        Norm(f"{RMS.text} h2 = Mul(x, d) n2 = Mul(h2, g)", RMS.gains, RMS.scalars, 20),
        "q = MatMul(n, Wq) k = MatMul(n2, Wk)",
        "float[A, S, 6] q, float[A, S, 6] k",
        {},
    ),
    "the bias elsewhere": (
        NORMS["LayerNormalization"],
        "q = MatMul(n, Wq) k = Add(x, c)",
        "float[A, S, 6] q, float[A, S, 8] k",
        {},
    ),
    "behind an Identity that others read": (
        Norm("gg = Identity(g) n = SimplifiedLayerNormalization(x, gg)", ("g",)),
        "q = MatMul(n, Wq) k = Mul(x, gg)",
        "float[A, S, 6] q, float[A, S, 8] k",
        {},
    ),
    "a gain that is an output": (
        Norm("gg = Identity(g) n = SimplifiedLayerNormalization(x, gg)", ("g",)),
        "q = MatMul(n, Wq)",
        "float[A, S, 6] q, float[8] gg",
        {},
    ),
    "a gain of shape [1, 1, K]": (
        RMS,
        "q = MatMul(n, Wq)",
        "float[A, S, 6] q",
        {"g": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 1, 8)},
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_gain_folds_for_one_norm_alone(rng: np.random.Generator, case: str) -> None:
    norm, readers, outputs, more = SHARED[case]
    sites, model = sites_and_models(rng, norm, readers, outputs, **more)
    assert isinstance(sites["q"], FoldSite), sites["q"]
    assert sites["q"].linears == ("q",)
    assert_fold_is_exact(rng, norm, model, "n")


@pytest.mark.parametrize(
    ("axis", "expected"), [(0, True), (1, True), (2, False), (-1, False), (-2, True), (-3, True)]
)
def test_the_last_axis_is_told_from_others(axis: int, expected: bool) -> None:
    assert is_not_last(axis, ir.Value(name="x", shape=ir.Shape([2, "T", 8]))) == expected


def test_of_an_unknown_rank_no_axis_from_the_front_is_certain() -> None:
    value = ir.Value(name="x")
    assert not is_not_last(0, value) and is_not_last(-2, value)
