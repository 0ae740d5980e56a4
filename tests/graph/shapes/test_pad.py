"""Rows padded with zeros and rolled around (Swin): a fold goes through, channels stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.norms import NORMS, normed_feeds, normed_graph
from support.tiny_graphs import run

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.fold_into_producers import fold_into_producers

NORM = NORMS["LayerNormalization"]

CONSTANTS = {
    "first": np.array([0], np.int64),
    "last": np.array([-1], np.int64),
    "one_": np.array([1], np.int64),
    "two_": np.array([2], np.int64),
    "axis_1": np.array([1], np.int64),
    "most": np.array([2**63 - 1], np.int64),
    "least": np.array([-(2**63) + 1], np.int64),
    "pick": np.array(1, np.int64),
    "pick2": np.array(2, np.int64),
    "flat": np.array([-1], np.int64),
    "pairs": np.array([-1, 2], np.int64),
    "rows": np.array([0, 1, 0, 0, 2, 0], np.int64),
    "wide": np.array([0, 0, 1, 0, 0, -1], np.int64),
    "of_axis": np.array([1, 2], np.int64),
    "shifted": np.array([1, -1], np.int64),
    "named": np.array([1], np.int64),
    "channel": np.array([2], np.int64),
    "zero": np.array(0, np.float32),
    "three": np.array(3, np.float32),
    "four_d": np.array([0, 1, -1, 8], np.int64),
    "row": np.ones((2, 3, 8), np.float32),
}
# torch's list from the last axis on, computed: nothing on the channels, one row after the others.
TORCH = (
    " sh = Shape(n) si = Gather(sh, pick) su = Unsqueeze(si, first) sd = Div(su, su)"
    " s1 = Squeeze(sd, first) s2 = Unsqueeze(s1, first)"
    " given = Concat<axis = 0>({}, first, first, s2)"
    " len = Shape(given) six = Add(two_, two_) siy = Add(six, two_) more = Sub(siy, len)"
    " fill = ConstantOfShape<value = int64[1] {{0}}>(more) all = Concat<axis = 0>(given, fill)"
    " two = Reshape(all, pairs) back = Slice(two, last, least, first, last)"
    " turned = Transpose<perm = [1, 0]>(back) counts0 = Reshape(turned, flat)"
    " counts = Cast<to = 7>(counts0) p = Pad(n, counts) q = MatMul(p, Wq)"
)
ROLLED = (
    " a = Slice(n, {0}, most, axis_1) b = Slice(n, first, {0}, axis_1) r = Concat<axis = 1>(a, b)"
)
KEPT = {
    "constant counts": "p = Pad(n, rows) q = MatMul(p, Wq)",
    "counts of one axis": "p = Pad(n, of_axis, zero, named) q = MatMul(p, Wq)",
    "copies of rows": 'p = Pad<mode = "edge">(n, rows) q = MatMul(p, Wq)',
    "torch's list": TORCH.format("first"),
    "rolled": f"{ROLLED.format('one_')} q = MatMul(r, Wq)",
    "rolled, and read before": f"{ROLLED.format('two_')} q = MatMul(r, Wq) k = MatMul(n, Wk)",
    "rolled twice": (
        f"{ROLLED.format('one_')} e = Slice(r, two_, most, axis_1)"
        " f = Slice(r, first, two_, axis_1) s = Concat<axis = -2>(e, f) q = MatMul(s, Wq)"
    ),
    "joined with itself": "r = Concat<axis = 1>(n, n) q = MatMul(r, Wq)",
    "a relu": "r = Relu(n) q = MatMul(r, Wq)",
    "channels counted in the graph": (
        "sh = Shape(x) si = Gather(sh, pick2) su = Unsqueeze(si, first)"
        " sizes = Concat<axis = 0>(first, one_, last, su) t = Reshape(n, sizes)"
        " p = Slice(t, first, most, axis_1) r = Transpose<perm = [1, 0, 2, 3]>(p) q = MatMul(r, Wq)"
    ),
}


def model_of(rng: np.random.Generator, readers: str) -> ir.Model:
    outputs = "float q" + (", float k" if " k = " in readers else "")
    return normed_graph(rng, NORM, readers=readers, outputs=outputs, more=CONSTANTS)


@pytest.mark.parametrize("path", KEPT)
def test_a_fold_goes_through(rng: np.random.Generator, path: str) -> None:
    model = model_of(rng, KEPT[path])
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, FoldSite), site
    assert len(set(site.linears)) == len(site.linears)
    feeds = normed_feeds(rng, NORM)
    before = run(model, feeds)
    fold_into_producers(model, {site.name: (0.1 + 4 * rng.random(8)).astype(np.float32)})
    for key, value in run(model, feeds).items():
        assert np.abs(value - before[key]).max() <= 32 * 2.0**-24 * np.abs(before[key]).max(), key


MIXED = {
    "padded channels": ("p = Pad(n, wide) q = MatMul(p, Wq)", "also feeds p (Pad)"),
    "channels named": (
        "p = Pad(n, shifted, zero, channel) q = MatMul(p, Wq)",
        "also feeds p (Pad)",
    ),
    "padded with threes": ("p = Pad(n, rows, three) q = MatMul(p, Wq)", "Pad"),
    "a list of unknown end": (TORCH.format("s2"), "Pad"),
    "joined with other rows": ("r = Concat<axis = 1>(n, x) q = MatMul(r, Wq)", "joined"),
    "joined with rows of ones": ("r = Concat<axis = 1>(n, row) q = MatMul(r, Wq)", "joined"),
    "joined channels, in rows": (
        "r = Concat<axis = 2>(n, x) t = Reshape(r, to_rows) q = MatMul(t, Wq)",
        "also feeds r (Concat)",
    ),
    "joined channels": ("r = Concat<axis = 2>(n, n) q = MatMul(r, W16)", "not (16,)"),
}


@pytest.mark.parametrize("path", MIXED)
def test_no_fold_where_more_than_rows_are_added(rng: np.random.Generator, path: str) -> None:
    readers, reason = MIXED[path]
    more = {"W16": np.ones((16, 6), np.float32)}
    model = normed_graph(rng, NORM, readers=readers, outputs="float q", more={**CONSTANTS, **more})
    site = find_fold_sites(find_linears(model).linears)["q"]
    assert isinstance(site, str) and reason in site, site
