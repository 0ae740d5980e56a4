"""One dispatch for all that is rounded: each method is the one of its own module."""

from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.numerics.group_weights import GroupWeights, dequantize, quantize_rtn
from fptq_onnx.numerics.hessian import Hessian
from fptq_onnx.numerics.weight_methods import METHODS, GroupFormat, quantize_weight
from fptq_onnx.scheme.config import WEIGHT_METHODS

K, N = 64, 24
FORMS = [GroupFormat(32), GroupFormat(32, symmetric=False), GroupFormat(-1, bits=8)]


def same(a: GroupWeights, b: GroupWeights) -> bool:
    zeros = (a.zero_points is None) == (b.zero_points is None)
    if zeros and a.zero_points is not None:
        zeros = bool((a.zero_points == b.zero_points).all())
    return zeros and bool((a.codes == b.codes).all() and (a.scales == b.scales).all())


@pytest.fixture
def weight(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(3, (K, N)).astype(np.float32)


@pytest.fixture
def hessian(rng: np.random.Generator) -> Hessian:
    x = rng.standard_normal((200, K)).astype(np.float32) * np.linspace(0.1, 4, K, dtype=np.float32)
    found = Hessian.empty(K)
    found.add(x, x + rng.standard_normal(x.shape).astype(np.float32) / 10)
    return found


def test_the_options_name_every_method() -> None:
    assert set(WEIGHT_METHODS) == set(METHODS)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_each_name_is_its_method(weight: np.ndarray, hessian: Hessian, form: GroupFormat) -> None:
    given = {"symmetric": form.symmetric, "bits": form.bits}
    nearest = quantize_rtn(weight, form.block_size, **given)
    searched = quantize_mse(weight, hessian.diagonal(), form.block_size, **given)
    fitted = quantize_gptq(weight, hessian, form.block_size, **given)
    assert same(quantize_weight(weight, "rtn", None, form), nearest)
    assert same(quantize_weight(weight, "rtn", hessian, form), nearest)
    assert same(quantize_weight(weight, "mse", hessian, form), searched)
    assert same(quantize_weight(weight, "mse", hessian.diagonal(), form), searched)
    assert same(quantize_weight(weight, "gptq", hessian, form), fitted)
    plain = quantize_gptq(weight, hessian, form.block_size, **given, rounds=0)
    assert same(quantize_weight(weight, "gptq", hessian, form, rounds=0), plain)
    if form.bits == 4:
        assert not same(nearest, searched) and not same(searched, fitted)
        assert not same(fitted, plain)


@pytest.mark.parametrize("method", METHODS)
def test_without_tokens_all_round_to_nearest(weight: np.ndarray, method: str) -> None:
    found = quantize_weight(weight, method, None, FORMS[0])
    assert same(found, quantize_rtn(weight, 32))


def test_gptq_of_inputs_that_are_all_zero_is_a_clip_search(weight: np.ndarray) -> None:
    zeros = Hessian.empty(K)
    zeros.add(np.zeros((5, K), np.float32), np.zeros((5, K), np.float32))
    found = quantize_weight(weight, "gptq", zeros, FORMS[0])
    assert same(found, quantize_mse(weight, np.zeros(K), 32))


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_what_is_left_and_the_codes_make_the_weight(
    weight: np.ndarray, hessian: Hessian, method: str
) -> None:
    left = np.full_like(weight, np.nan)
    found = quantize_weight(weight, method, hessian, FORMS[0], left=left)
    np.testing.assert_array_equal(left, weight - dequantize(found))


def test_gptqs_left_is_of_its_target(weight: np.ndarray, hessian: Hessian) -> None:
    """W8 = W + H^-1 X8^T (X - X8) W differs from W here: the quantized input has noise."""
    left, expected = np.empty_like(weight), np.empty_like(weight)
    found = quantize_weight(weight, "gptq", hessian, FORMS[0], left=left)
    quantize_gptq(weight, hessian, 32, left=expected)
    np.testing.assert_array_equal(left, expected)
    assert np.abs(left - (weight - dequantize(found))).max() > 1e-3


@pytest.mark.parametrize(("method", "seen"), [("gptq", np.ones(K))])
def test_too_little_is_refused(weight: np.ndarray, method: str, seen: np.ndarray) -> None:
    with pytest.raises(ValueError, match="GPTQ needs the Hessian"):
        quantize_weight(weight, method, seen, FORMS[0])
    with pytest.raises(KeyError):
        quantize_weight(weight, "awq", seen, FORMS[0])
