from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.gated import FOLDABLE, gated_model

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.quantization import layer_group as stage_view
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.layer_group import LayerGroupInputs
from fptq_onnx.quantization.paired_activations import FLOAT
from fptq_onnx.quantization.scheme_search import fake_int8
from fptq_onnx.quantization.subgraphs import find_layer_groups
from fptq_onnx.scheme.activation_stats import ChannelRange

K = 6
# One token in four of each batch of 9, 0 and 30.
FEW = [*range(0, 9, 4), *range(9, 39, 4)]
SMOOTHING = np.linspace(0.5, 2, K).astype(np.float32)


class Activations:
    """Stands in for PairedActivations: rows by stream, batch by batch."""

    def __init__(self, x: list[np.ndarray], x8: list[np.ndarray]) -> None:
        self.batches = {FLOAT: x, "quantized": x8}

    def rows(self, group: object, side: str) -> Iterator[np.ndarray]:
        return iter(self.batches[side])


@pytest.fixture
def activations(rng: np.random.Generator) -> Activations:
    x = [rng.standard_normal((n, K)).astype(np.float32) for n in (9, 0, 30)]
    return Activations(x, [a + np.float32(0.1) for a in x])


def view_of(
    rng: np.random.Generator, activations: Activations, *, routed: bool = False
) -> LayerGroupInputs:
    model = gated_model(rng, FOLDABLE["Gemm"])
    group = find_layer_groups(model.graph, find_linears(model).linears)[0]
    group = replace(group, routed=routed)
    weights = [linear.weight.load() for linear in group.linears]
    ranges = ChannelRange(np.full(K, -3, np.float32), np.full(K, 4, np.float32))
    return LayerGroupInputs(
        group, activations, weights, ranges, Declined("n", "nothing is folded here")
    )  # type: ignore[arg-type]


def test_sizes_and_a_sample_of_all_batches(
    rng: np.random.Generator, activations: Activations
) -> None:
    view = view_of(rng, activations)
    x, x8 = (np.concatenate(batches) for batches in activations.batches.values())
    np.testing.assert_allclose(view.sizes.rms, np.sqrt((x.astype("f8") ** 2).mean(0)), rtol=1e-12)
    np.testing.assert_array_equal(view.sizes.absmax, np.full(K, 4))
    np.testing.assert_array_equal(view.sample.x, x)
    np.testing.assert_array_equal(view.sample.x_quantized, x8)
    both = np.concatenate(view.weights, axis=1)
    np.testing.assert_array_equal(view.sizes.weight_absmax, np.abs(both).max(axis=1))


def test_a_sample_is_a_share_of_every_batch(
    rng: np.random.Generator, activations: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_view, "_SAMPLE_TOKENS", 13)
    sample = view_of(rng, activations).sample
    first, _, last = activations.batches[FLOAT]
    assert len(sample.x) == 13  # a third: 3 of 9, 10 of 30
    np.testing.assert_array_equal(sample.x[:3], first[[0, 4, 8]])
    np.testing.assert_array_equal(sample.x[[3, 12]], last[[0, 29]])
    np.testing.assert_array_equal(sample.x_quantized, sample.x + np.float32(0.1))


@pytest.mark.parametrize("scale", [None, 0.05])
def test_moments_and_mean_squares(
    rng: np.random.Generator, activations: Activations, scale: float | None
) -> None:
    view = view_of(rng, activations)
    found = view.moments(SMOOTHING, scale)
    x, x8 = (np.concatenate(batches) for batches in activations.batches.values())
    rounded = fake_int8(x8, SMOOTHING, scale).astype("f8")
    # Float32 sums of 30 products: 30 2^-24 relative to sums of magnitudes below 200.
    np.testing.assert_allclose(found.xx, rounded.T @ rounded, atol=200 * 30 * 2.0**-24)
    np.testing.assert_allclose(
        found.x_float, rounded.T @ (x.astype("f8") / SMOOTHING), atol=200 * 31 * 2.0**-24
    )
    assert found.tokens == 39
    np.testing.assert_allclose(view.mean_squares(SMOOTHING, scale), found.diagonal(), rtol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_outputs_and_their_errors(
    rng: np.random.Generator, activations: Activations, scale: float | None
) -> None:
    view = view_of(rng, activations)
    linear = view.group.linears[1]  # up, with a bias
    assert linear.bias is not None
    w, b = linear.weight.load(), linear.bias.load()
    rounded = dequantize(quantize_rtn(w * SMOOTHING[:, None], -1))
    errors = LinearErrors("up", "up")
    divided = w * SMOOTHING[:, None]
    quantized = (rounded, divided - rounded)
    got = list(view.outputs(linear, w, quantized, SMOOTHING, scale, errors))
    assert [len(y) for y, _ in got] == [9, 0, 30]
    x, x8 = (np.concatenate(batches).astype("f8") for batches in activations.batches.values())
    seen = fake_int8(x8.astype("f4"), SMOOTHING, scale).astype("f8")
    want, have = x @ w, seen @ rounded
    np.testing.assert_allclose(np.concatenate([y for y, _ in got]), want + b, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([y for _, y in got]), have + b, atol=1e-5)
    sums = {
        "input_local": (x8 / SMOOTHING, seen), "input_total": (x / SMOOTHING, seen),
        "output_local": ((x8 @ w)[FEW], have[FEW]), "output_total": (want, have),
    }  # fmt: skip
    for name, (a, c) in sums.items():
        ratio = getattr(errors, name)
        np.testing.assert_allclose(ratio.signal, np.square(a).sum(), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(ratio.error, np.square(a - c).sum(), rtol=1e-3, err_msg=name)


def test_weights_that_aim_elsewhere_are_no_local_error(
    rng: np.random.Generator, activations: Activations
) -> None:
    """Exact weights of another aim: the local error is that of the input alone."""
    view = view_of(rng, activations)
    linear = view.group.linears[1]
    w = linear.weight.load()
    aimed = (w * SMOOTHING[:, None] * 1.5).astype(np.float32)
    errors = LinearErrors("up", "up")
    list(view.outputs(linear, w, (aimed, np.zeros_like(aimed)), SMOOTHING, 0.05, errors))
    x8 = np.concatenate(activations.batches["quantized"])
    rounding = (x8 - fake_int8(x8, SMOOTHING, 0.05) * SMOOTHING)[FEW]
    np.testing.assert_allclose(
        errors.output_local.error, np.square((rounding @ w).astype("f8")).sum(), rtol=1e-3
    )
    assert errors.output_total.error > 10 * errors.output_local.error


def test_a_linear_in_float(rng: np.random.Generator, activations: Activations) -> None:
    view = view_of(rng, activations)
    linear, w = view.group.linears[0], view.weights[0]
    errors = LinearErrors("g", "g")
    got = list(view.outputs(linear, w, None, SMOOTHING, None, errors))
    np.testing.assert_array_equal(got[2][1], activations.batches["quantized"][2] @ w)
    assert errors.output_local.signal == errors.input_local.signal == 0
    np.testing.assert_allclose(errors.input_total.error, 39 * K * 0.01, rtol=1e-4)
    assert errors.output_total.error > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(rng: np.random.Generator, activations: Activations, bad: float) -> None:
    x8 = activations.batches["quantized"]
    x8[2][3, 1] = bad
    with pytest.raises(FptqError, match=r"input of g \(g\): once the linears before it"):
        view_of(rng, activations)
    x8[2][3, 1] = 0
    activations.batches[FLOAT][0][8, 0] = bad
    with pytest.raises(FptqError, match=r"input of g \(g\): check that the model runs well"):
        view_of(rng, activations)


@pytest.mark.parametrize("how", ["known from the graph", "seen from the numbers of rows"])
def test_tokens_that_are_routed_elsewhere(
    rng: np.random.Generator, activations: Activations, how: str
) -> None:
    """Rows of the two models do not pair: all is measured on what the quantized one sees."""
    own = activations.batches["quantized"]
    own[2] = own[2][::-1] if how == "known from the graph" else own[2][:-1]
    view = view_of(rng, activations, routed=how == "known from the graph")
    assert not view.paired and not view.unseen
    x8 = np.concatenate(own)
    for rows in (view.sample.x, view.sample.x_quantized):
        np.testing.assert_array_equal(rows, x8)
    np.testing.assert_allclose(view.sizes.rms, np.sqrt((x8.astype("f8") ** 2).mean(0)), rtol=1e-6)
    moments = view.moments(SMOOTHING, None)
    rounded = fake_int8(x8, SMOOTHING, None).astype("f8")
    wanted = rounded.T @ (x8.astype("f8") / SMOOTHING)
    np.testing.assert_allclose(moments.x_float, wanted, atol=200 * 31 * 2.0**-24)
    linear, w = view.group.linears[0], view.weights[0]
    divided = w * SMOOTHING[:, None]
    codes = dequantize(quantize_rtn(divided, -1))
    errors = LinearErrors("g", "g")
    got = list(view.outputs(linear, w, (codes, divided - codes), SMOOTHING, None, errors))
    for (want, have), x, q in zip(got, activations.batches[FLOAT], own, strict=True):
        np.testing.assert_allclose(want, x @ w, atol=1e-5)
        np.testing.assert_allclose(have, fake_int8(q, SMOOTHING, None) @ codes, atol=1e-5)
    np.testing.assert_allclose(errors.output_total.signal, np.square(x8 @ w).sum(), rtol=1e-4)


def test_rows_of_the_float_model_where_the_quantized_one_sends_none(
    rng: np.random.Generator, activations: Activations
) -> None:
    own = activations.batches["quantized"]
    activations.batches["quantized"] = [rows[:0] for rows in own]
    view = view_of(rng, activations, routed=True)
    np.testing.assert_array_equal(view.sample.x, np.concatenate(activations.batches[FLOAT]))
    assert not view.unseen
    assert view.mean_squares(SMOOTHING, None).min() > 0


def test_no_token_at_all(rng: np.random.Generator) -> None:
    empty = [np.zeros((0, K), np.float32)]
    with pytest.raises(FptqError, match="no token of the calibration samples reaches g"):
        view_of(rng, Activations(empty, empty))
    view = view_of(rng, Activations(empty, empty), routed=True)
    assert view.unseen and len(view.sample.x) == 0
