from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.gated import FOLDABLE, NOT_FOLDABLE, M, gated_model
from support.norms import NORMS, normed_graph

from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.folding.linear_sites import LinearSite
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.quantization.fold_targets import FoldTarget, fold_targets, without_cached_values
from fptq_onnx.quantization.subgraphs import find_layer_groups


def sites_of(model: ir.Model) -> dict[str, FoldTarget | Declined]:
    linears = find_linears(model).linears
    return dict(fold_targets(find_layer_groups(model.graph, linears), linears))


def test_a_norm_whose_readers_are_one_stage(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng, NORMS["LayerNormalization"], readers="q = MatMul(n, Wq) k = MatMul(n, Wk)",
        outputs="float q, float k",
    )  # fmt: skip
    (site,) = sites_of(model).values()
    assert isinstance(site, FoldTarget)
    assert site.name == "n" and site.norm is not None and site.source is None


def test_readers_through_a_reshape_are_a_stage_of_their_own(rng: np.random.Generator) -> None:
    """Each layer group would fold smoothing scales of its own: neither may."""
    model = normed_graph(rng, NORMS["LayerNormalization"])
    reason = "other linears read the same value through casts"
    assert sites_of(model) == {name: Declined(name, reason) for name in ("n", "rows")}


def test_scales_of_a_norms_own_output_go_across_groups(rng: np.random.Generator) -> None:
    model = normed_graph(rng, NORMS["LayerNormalization"])
    linears = find_linears(model).linears
    found = fold_targets(find_layer_groups(model.graph, linears), linears, across_groups=True)
    assert all(isinstance(target, FoldTarget) and target.name == "n" for target in found.values())
    assert set(found) == {"n", "rows"}


def test_columns(rng: np.random.Generator) -> None:
    found = sites_of(gated_model(rng, FOLDABLE["two readers"]))
    site = found["p"]
    assert isinstance(site, FoldTarget)
    assert site.name == "up" and site.norm is None and site.source is not None
    assert site.source.name == "up"
    assert "which has no gain to fold into" in site.no_norm
    assert isinstance(found["n"], Declined)


def test_columns_read_through_a_cast_by_one_of_two(rng: np.random.Generator) -> None:
    text = FOLDABLE["two readers"].replace(
        "d2 = MatMul(p, We)", "q = Cast<to = 1>(p) d2 = MatMul(q, We)"
    )
    found = sites_of(gated_model(rng, text))
    reason = "other linears read the same value through casts"
    assert [found[name] for name in "pq"] == [Declined(name, reason) for name in "pq"]


def test_no_site_has_a_reason(rng: np.random.Generator) -> None:
    found = sites_of(gated_model(rng, NOT_FOLDABLE["squared through a cast"]))["p"]
    assert isinstance(found, Declined) and "which has no gain to fold into" in found.reason


@pytest.mark.parametrize("name", ["biases", "Gemm transB"])
def test_overflow_of_half_precision(rng: np.random.Generator, name: str) -> None:
    """65504 is the end; only the channel divided by 1e-6 gets there, columns and bias alike."""
    text = FOLDABLE[name]
    model = gated_model(rng, text, dtype="float16")
    site = sites_of(model)["p"]
    assert isinstance(site, FoldTarget)
    s = np.ones(M, np.float32)
    assert site.overflow(s) == ""
    s[3] = 1e-6
    assert "divided by s overflows FLOAT16" in site.overflow(s)
    for weight in {"Wu", "Wut", "b"} & set(model.graph.initializers):
        value = model.graph.initializers[weight]
        array = value.const_value.numpy().copy()  # type: ignore[union-attr]
        array[(slice(None), 3) if weight == "Wu" else 3] = 0
        value.const_value = ir.tensor(array, name=weight)
    site = sites_of(model)["p"]
    assert isinstance(site, FoldTarget) and site.overflow(s) == ""  # nothing in that channel
    wide = sites_of(gated_model(rng, text))["p"]
    assert isinstance(wide, FoldTarget) and wide.overflow(s) == ""


def test_overflow_of_the_bias_alone(rng: np.random.Generator) -> None:
    model = gated_model(rng, FOLDABLE["biases"], dtype="float16")
    bias = np.zeros(M, np.float16)
    bias[2] = 60000
    model.graph.initializers["b"].const_value = ir.tensor(bias, name="b")
    site = sites_of(model)["p"]
    assert isinstance(site, FoldTarget)
    s = np.ones(M, np.float32)
    s[2] = 0.5
    assert site.overflow(s) == "b divided by s overflows FLOAT16"


@pytest.mark.parametrize(
    ("name", "shape", "folds"),
    [
        ("past_key_values.0.value", (1, 2, 3, 4), False),
        ("past_key_values.0.value", (1, 2, 0, 4), True),
        ("mask", (1, 1, 3, 3), True),
        ("past", (2, 3), True),
    ],
)
def test_cached_values_that_samples_bring_are_not_divided(
    name: str, shape: tuple[int, ...], folds: bool
) -> None:
    through = FoldTarget("v", None, None, LinearSite("v", (), 2, np.arange(2), True))
    plain = FoldTarget("up", None, None, LinearSite("up", (), 2, np.arange(2)))
    sites: dict[str, FoldTarget | Declined] = {
        "a": through,
        "p": plain,
        "n": Declined("n", "why not"),
    }
    feeds = [{}, {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))}]
    found = without_cached_values(sites, feeds)
    assert found["p"] is plain and found["n"] is sites["n"]
    assert found["a"] is through if folds else "cached values" in str(found["a"])
