"""Equalization must not change what the float model computes, nor add a node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from support.norms import NORMS, Norm, normed_feeds, normed_graph
from support.tiny_graphs import FLOAT16_EPS, build, op_counts, run, stats_of, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.equalize import equalize
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, Plan

# Channels never seen, barely seen, small and large; s ranges from 1e-4 to 14.
ABSMAX = np.array([0, 1e-7, 1e-4, 0.5, 6, 30, 100, 20], np.float32)


def plan_for(model: ir.Model, absmax: np.ndarray, **config: object) -> Plan:
    scan = find_linears(model)
    stats = stats_of(model, {linear.x.name or "": absmax for linear in scan.linears})
    return choose_schemes(scan, stats, Config(**config))  # type: ignore[arg-type]


def equalized(model: ir.Model, absmax: np.ndarray = ABSMAX) -> tuple[ir.Model, tuple[str, ...]]:
    """An equalized clone, and the names of the folded norms."""
    plan = plan_for(model, absmax)
    clone = model.clone()
    stats = stats_of(model, {linear.x.name or "": absmax for linear in find_linears(model).linears})
    return clone, equalize(clone, plan, stats).names


def check_same_function(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    """Acceptance of the issue: 1e-5 of the largest output.

    Derived: folding rounds gain, bias and weight once more each, 3 * 2**-24 relative per term, and
    the sums of 8 terms are rounded anew, 8 * 2**-23: below 1.2e-6 of sum|x||w|, which for these
    8-term sums is less than 8 times the largest output.
    """
    expected, got = run(before, feeds), run(after, feeds)
    for name, array in expected.items():
        assert np.abs(got[name] - array).max() <= 1e-5 * np.abs(array).max(), name


@pytest.mark.parametrize("name", NORMS)
def test_the_function_stays_in_every_norm_form(rng: np.random.Generator, name: str) -> None:
    norm = NORMS[name]
    model = normed_graph(rng, norm)
    after, folded = equalized(model)
    assert folded == ("n",)
    counts = op_counts(model)
    if name == "gemma 1 + w":
        counts["Add"] -= 1  # the sum 1 + w became a constant: a node less, never one more
    assert op_counts(after) == counts
    check_same_function(model, after, normed_feeds(rng, norm))


@pytest.mark.parametrize("name", NORMS)
def test_the_activation_really_is_divided(rng: np.random.Generator, name: str) -> None:
    norm = NORMS[name]
    model = normed_graph(rng, norm)
    after, _ = equalized(model)
    scale = np.where(ABSMAX < 1e-5, 1, ABSMAX / np.log2(2 + ABSMAX))
    for graph in (model.graph, after.graph):
        value = next(node for node in graph if node.name == "n").outputs[0]
        value.dtype = ir.DataType.FLOAT
        graph.outputs.append(value)
    feeds = normed_feeds(rng, norm)
    # gain / s is rounded once, s itself once; a bias is added with one more rounding.
    expected = run(model, feeds)["n"] / scale
    bound = 4 * 2.0**-24 * np.abs(expected).max(axis=(0, 1))
    assert (np.abs(run(after, feeds)["n"] - expected) <= bound).all()


def test_the_original_keeps_its_weights(rng: np.random.Generator) -> None:
    model = normed_graph(rng, NORMS["LayerNormalization"])
    before = {name: v.const_value.tobytes() for name, v in model.graph.initializers.items()}
    equalized(model)
    after = {name: v.const_value.tobytes() for name, v in model.graph.initializers.items()}
    assert before == after


def test_a_tied_embedding_is_not_touched(rng: np.random.Generator) -> None:
    model = build(
        "g_ (int64[A] ids) => (float[A, 10] y) { e = Gather(E, ids)"
        " n = LayerNormalization(e, g) w = Transpose<perm = [1, 0]>(E) y = MatMul(n, w) }",
        {"E": weight(rng, 10, 8), "g": weight(rng, 8)},
    )
    after, folded = equalized(model)
    assert folded == ("n",)
    check_same_function(model, after, {"ids": np.arange(10)})
    assert op_counts(after) == {"Gather": 1, "LayerNormalization": 1, "MatMul": 1}


def test_one_weight_of_two_norms_gets_two_copies_where_a_plan_asks(
    rng: np.random.Generator,
) -> None:
    model = build(
        "g_ (float[A, 8] x) => (float[A, 8] y) { n = LayerNormalization(x, g)"
        " q = MatMul(n, W) r = Relu(q) n2 = LayerNormalization(r, g2) y = MatMul(n2, W) }",
        {"g": weight(rng, 8), "g2": weight(rng, 8), "W": weight(rng, 8, 8)},
    )
    chosen = plan_for(model, ABSMAX)
    assert {entry.scheme for entry in chosen.linears} == {PER_TOKEN}
    assert all("stored once" in entry.reason for entry in chosen.linears)
    asked = tuple(replace(entry, scheme=LAE_STATIC, equalization="lae") for entry in chosen.linears)
    plan = replace(chosen, linears=asked)
    ranges = {"n": ABSMAX, "n2": ABSMAX[::-1]}
    clone = model.clone()
    assert equalize(clone, plan, stats_of(model, ranges)).names == ("n", "n2")
    check_same_function(model, clone, {"x": weight(rng, 5, 8)})


def test_gain_and_bias_may_be_the_same_tensor(rng: np.random.Generator) -> None:
    model = build(
        "g_ (float[A, 8] x) => (float[A, 6] y) {"
        " n = LayerNormalization(x, g, g) y = MatMul(n, W) }",
        {"g": weight(rng, 8), "W": weight(rng, 8, 6)},
    )
    after, folded = equalized(model)
    assert folded == ("n",)
    check_same_function(model, after, {"x": weight(rng, 5, 8)})


def test_a_weight_stored_in_half_behind_a_cast(rng: np.random.Generator) -> None:
    model = build(
        "g_ (float[A, 8] x) => (float[A, 6] y) { gg = Cast<to = 1>(g) w = Cast<to = 1>(W)"
        " n = LayerNormalization(x, gg) y = MatMul(n, w) }",
        {"g": weight(rng, 8, dtype="float16"), "W": weight(rng, 8, 6, dtype="bfloat16")},
    )
    after, _ = equalized(model)
    check_same_function(model, after, {"x": weight(rng, 5, 8)})
    assert op_counts(after) == {"LayerNormalization": 1, "MatMul": 1}


def test_a_float16_model(rng: np.random.Generator) -> None:
    model = build(
        "g_ (float16[A, 8] x) => (float16[A, 6] y) {"
        " n = LayerNormalization(x, g) y = MatMul(n, W) }",
        {"g": 1 + weight(rng, 8, dtype="float16"), "W": weight(rng, 8, 6, dtype="float16")},
    )
    absmax = np.maximum(ABSMAX, 0.5)
    after, folded = equalized(model, absmax)
    assert folded == ("n",)
    x = weight(rng, 5, 8, dtype="float16")
    expected, got = run(model, {"x": x})["y"], run(after, {"x": x})["y"]
    normal = np.abs(run_norm(model, x)).astype(np.float64)
    # Each term x_j w_j is rounded at the gain, the norm's output and the weight, on both sides: 6
    # half-ulps; the sum of 8 terms and its result: 9 ulps on both sides.
    bound = (3 + 18) * FLOAT16_EPS * (normal @ np.abs(find_weight(model)).astype(np.float64))
    assert (np.abs(got.astype(np.float64) - expected) <= bound).all()


def run_norm(model: ir.Model, x: np.ndarray) -> np.ndarray:
    clone = model.clone()
    value = next(node for node in clone.graph if node.name == "n").outputs[0]
    value.dtype = ir.DataType.FLOAT16
    clone.graph.outputs.append(value)
    return run(clone, {"x": x})["n"]


def find_weight(model: ir.Model) -> np.ndarray:
    return find_linears(model).linears[0].weight.load()


def test_a_gain_that_would_overflow_float16_is_declined(rng: np.random.Generator) -> None:
    gain = np.ones(8, np.float16)
    gain[2] = 100  # divided by 1e-4 / log2(2.0001): about 1e6, float16 ends at 65504
    model = build(
        "g_ (float16[A, 8] x) => (float16[A, 6] y) {"
        " n = LayerNormalization(x, g) y = MatMul(n, W) }",
        {"g": gain, "W": weight(rng, 8, 6, dtype="float16")},
    )
    plan = plan_for(model, ABSMAX)
    assert plan.linears[0].scheme == PER_TOKEN
    assert "g divided by s overflows FLOAT16" in plan.linears[0].reason
    after, folded = equalized(model)
    assert not folded
    assert find_weight(after).tobytes() == find_weight(model).tobytes()


def test_weights_are_rescaled_only_when_read(rng: np.random.Generator) -> None:
    model = normed_graph(rng, NORMS["dynamo RMSNorm"])
    after, _ = equalized(model)
    lazy = [v.const_value for name, v in after.graph.initializers.items() if "_equalized" in name]
    assert len(lazy) == 4
    assert all(isinstance(tensor, ir.LazyTensor) for tensor in lazy)


@pytest.mark.parametrize(
    ("norm", "readers"),
    [
        (NORMS["dynamo RMSNorm"], "q = MatMul(n, Wq) k = Tanh(n)"),
        (Norm("n = Tanh(x)", ()), "q = MatMul(n, Wq) k = Sigmoid(n)"),
    ],
)
def test_a_declined_site_leaves_the_model_as_it_is(
    rng: np.random.Generator, norm: Norm, readers: str
) -> None:
    model = normed_graph(rng, norm, readers=readers, outputs="float[A, S, 6] q, float[A, S, 8] k")
    plan = plan_for(model, ABSMAX)
    assert plan.linears[0].scheme == PER_TOKEN
    assert "cannot be equalized: " in plan.linears[0].reason
    after, folded = equalized(model)
    assert not folded
    feeds = normed_feeds(rng, norm)
    for name, array in run(model, feeds).items():
        np.testing.assert_array_equal(run(after, feeds)[name], array)


def test_a_plan_that_asks_for_the_impossible_is_refused(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng,
        NORMS["dynamo RMSNorm"],
        readers="q = MatMul(n, Wq) k = Tanh(n)",
        outputs="float q, float k",
    )
    plan = plan_for(model, ABSMAX)
    forced = replace(plan, linears=(replace(plan.linears[0], scheme=LAE_STATIC),))
    stats = stats_of(model, {"n": ABSMAX})
    with pytest.raises(FptqError, match=r"input of q, but .* also feeds k \(Tanh\)"):
        equalize(model, forced, stats)
    assert not any("_equalized" in name for name in model.graph.initializers)


def test_linears_kept_in_float_still_take_the_scale(rng: np.random.Generator) -> None:
    norm = NORMS["SimplifiedLayerNormalization"]
    model = normed_graph(rng, norm)
    plan = plan_for(model, ABSMAX, ignore=("^u$",))
    assert [entry.fold_site for entry in plan.linears] == ["n", "n", "n"]
    clone = model.clone()
    stats = stats_of(model, {"n": ABSMAX, "rows": ABSMAX})
    assert equalize(clone, plan, stats).names == ("n",)
    check_same_function(model, clone, normed_feeds(rng, norm))
