"""Perplexity, KL and top-1 against figures worked out by hand; refusal of NaN."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fptq_onnx import evaluate
from fptq_onnx.decoder import Decoder
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluate import compare, compare_outputs, perplexity


def decoder(table: NDArray[Any]) -> Decoder:
    """A stand-in whose logits at each position are a row of a table, by the token fed there."""
    logits = np.asarray(table, np.float32)
    return cast(Decoder, SimpleNamespace(forward=lambda ids: SimpleNamespace(logits=logits[ids])))


def window(*ids: int) -> NDArray[np.int64]:
    return np.array(ids, np.int64)


def logits_of(*probabilities: list[float]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities))


# After token 0 comes 0, 1, 2 with these probabilities, and so on.
REFERENCE = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6])
CANDIDATE = logits_of([0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5])
# Probabilities pass through float32 logits: each log is off by at most 2^-24 * |log| < 2e-7, and
# what is compared below is a mean of such, or its exp times 3; 2e-6 covers both.
CLOSE = 2e-6


def test_figures_worked_out_by_hand() -> None:
    result = compare(decoder(REFERENCE), decoder(CANDIDATE), [window(0, 1, 1), window(2, 0)])
    # Predictions: 0 -> 1, 1 -> 1 in the first window and 2 -> 0 in the second.
    assert result.perplexity_reference == pytest.approx((0.25 * 0.8 * 0.2) ** (-1 / 3), rel=CLOSE)
    assert result.perplexity == pytest.approx((0.5 * 0.8 * 0.25) ** (-1 / 3), rel=CLOSE)
    # Positions: 0, 1, 1, 2, 0. Row 1 does not differ.
    kl_0 = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    kl_2 = 0.4 * math.log(0.2 / 0.25) + 0.6 * math.log(0.6 / 0.5)
    assert result.kl == pytest.approx((2 * kl_0 + kl_2) / 5, abs=CLOSE)
    assert result.kl_max == pytest.approx(kl_0, abs=CLOSE)
    assert result.top1 == 3 / 5
    assert result.max_abs_diff == pytest.approx(math.log(2), rel=CLOSE)
    assert result.max_rel_diff == pytest.approx(math.log(2) / -math.log(0.1), rel=CLOSE)
    assert (result.positions, result.predictions) == (5, 3)


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    table = np.random.default_rng(0).normal(size=(50, 50)) * 20
    result = compare(decoder(table), decoder(table), [np.arange(50)])
    assert result.kl == result.kl_max == result.max_abs_diff == result.max_rel_diff == 0.0
    assert result.top1 == 1.0
    assert result.perplexity == result.perplexity_reference


def test_a_shift_of_all_logits_is_no_divergence() -> None:
    result = compare(decoder(REFERENCE), decoder(REFERENCE + 100), [window(0, 1, 2)])
    # float32 logits near 100 are rounded by 2^-18 = 4e-6 (half an ulp); KL goes with its square.
    assert result.kl < 1e-9
    assert result.max_abs_diff == pytest.approx(100, rel=1e-6)


def test_large_logits_do_not_overflow() -> None:
    table = np.array([[3e38, 0.0], [0.0, 3e38]])
    result = compare(decoder(table), decoder(-table), [window(0, 0)])
    # The candidate gives the reference's sure token a log-probability of -3e38 (float32's 3e38).
    assert result.kl == pytest.approx(3e38, rel=1e-6) and result.top1 == 0.0
    assert result.perplexity_reference == 1.0
    assert result.perplexity == math.inf  # exp(3e38), said plainly and not raised


def test_blocks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    reference, candidate = decoder(rng.normal(size=(9, 9))), decoder(rng.normal(size=(9, 9)))
    windows = [window(*rng.integers(0, 9, 8)) for _ in range(3)]
    whole = compare(reference, candidate, windows)
    alone = perplexity(reference, windows)
    monkeypatch.setattr(evaluate, "_BLOCK", 9 * 3)  # three rows at a time, the last block shorter
    parts = compare(reference, candidate, windows)
    # float64 sums of 24 terms in another order: 24 * 2^-53 < 1e-14.
    assert parts.to_dict() == pytest.approx(whole.to_dict(), rel=1e-13)
    assert perplexity(reference, windows) == pytest.approx(alone, rel=1e-13)
    assert alone == pytest.approx(whole.perplexity_reference, rel=1e-13)


def test_a_masked_token_is_let_through() -> None:
    masked = logits_of([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0])
    other = logits_of([0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0])
    result = compare(decoder(masked), decoder(other), [window(0, 1)])
    kl = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert result.kl == pytest.approx(kl / 2, abs=CLOSE)
    assert result.max_abs_diff == pytest.approx(math.log(2), rel=CLOSE)


def test_what_the_candidate_rules_out_is_an_infinite_divergence() -> None:
    sure = logits_of([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert compare(decoder(REFERENCE), decoder(sure), [window(0, 0)]).kl == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["reference", "candidate"])
def test_nan_is_an_error_that_says_where(bad: float, which: str) -> None:
    broken = REFERENCE.copy()
    broken[2, 1] = bad
    models = {"reference": decoder(REFERENCE), "candidate": decoder(REFERENCE)}
    models[which] = decoder(broken)
    who = "the reference model" if which == "reference" else "the model"
    with pytest.raises(FptqError, match=f"^{who} on window 2 gave 1 logits .* position 1;"):
        compare(models["reference"], models["candidate"], [window(0, 1), window(1, 2)])


def test_different_vocabularies_and_nothing_to_predict() -> None:
    with pytest.raises(FptqError, match="logits 3 and 2 wide"):
        compare(decoder(REFERENCE), decoder(REFERENCE[:, :2]), [window(0, 1)])
    for windows in ([], [window(0)]):
        with pytest.raises(FptqError, match="nothing to evaluate on"):
            compare(decoder(REFERENCE), decoder(REFERENCE), windows)
        with pytest.raises(FptqError, match="nothing to evaluate on"):
            perplexity(decoder(REFERENCE), windows)


def test_logits_of_the_last_position_only_are_refused() -> None:
    logits = np.zeros((1, 1, 3), np.float32)
    last = cast(Decoder, SimpleNamespace(forward=lambda ids: SimpleNamespace(logits=logits)))
    with pytest.raises(FptqError, match="logits for every position"):
        perplexity(last, [window(0, 1)])


def scale(by: float, *, name: str = "y") -> ort.InferenceSession:
    """A model y = x * by."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n"])
    factor = ir.val("factor", const_value=ir.tensor(np.float32(by), name="factor"))
    node = ir.node("Mul", [x, factor])
    node.outputs[0].name = name
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(["n"])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[factor], opset_imports={"": 18}, name="g"
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def feeds(*values: list[float]) -> list[dict[str, NDArray[Any]]]:
    return [{"x": np.array(value, np.float32)} for value in values]


def test_outputs_of_any_model() -> None:
    (difference,) = compare_outputs(scale(2.0), scale(1.5), feeds([1, -2], [4]))
    assert (difference.name, difference.elements) == ("y", 3)
    assert difference.max_abs_diff == 2.0
    assert difference.max_rel_diff == 0.25
    # Each difference is a quarter of the reference: 20 log10(4) dB, exact up to float64 rounding.
    assert difference.sqnr_db == pytest.approx(20 * math.log10(4), rel=1e-12)


def test_equal_outputs() -> None:
    (difference,) = compare_outputs(scale(2.0), scale(2.0), feeds([1, -2, math.inf]))
    assert difference.max_abs_diff == difference.max_rel_diff == 0.0
    assert difference.sqnr_db == math.inf


def test_output_errors() -> None:
    with pytest.raises(FptqError, match="nothing to evaluate on"):
        compare_outputs(scale(2.0), scale(2.0), [])
    with pytest.raises(FptqError, match=r"^the reference model on sample 2 gave NaN in output y"):
        compare_outputs(scale(2.0), scale(2.0), feeds([1], [math.nan]))
    with pytest.raises(FptqError, match="could not run the model on sample 1"):
        compare_outputs(scale(2.0), scale(2.0, name="z"), feeds([1]))
