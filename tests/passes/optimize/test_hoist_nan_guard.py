"""Empty rows are cleared after the product: the same for every mask."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from support.exported_attention import ATTENTION, GUARDED, attention, feeds
from support.tiny_graphs import op_counts, run

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.optimize.hoist_nan_guard import hoist_nan_guard
from fptq_onnx.runtime.session import session_options


@pytest.mark.parametrize("new", [1, 3, 17])
def test_the_same_numbers_with_empty_rows(rng: np.random.Generator, new: int) -> None:
    model, inputs = attention(outputs="float y, float g"), feeds(rng, new=new, past=20 - new)
    inputs["mask"][0, 0, -1] = -np.inf
    before = run(model, inputs)
    assert not before["g"][0, :, -1].any()  # cleared, and nothing else is
    model = attention()
    assert hoist_nan_guard(model) == PassResult(1)
    after = run(model, inputs)
    # A row of probabilities is multiplied as it was: nothing is added up in another order.
    np.testing.assert_array_equal(after["y"], before["y"])
    assert not after["y"][0, -1].any() and op_counts(model)["Where"] == 1


@pytest.mark.parametrize("pattern", range(8))
def test_the_same_for_any_mask(rng: np.random.Generator, pattern: int) -> None:
    inputs = feeds(rng, new=9, past=4)
    shape = inputs["mask"].shape
    kept = rng.random(shape) < [0, 0.02, 0.1, 0.3, 0.5, 0.9, 1, 0.05][pattern]
    inputs["mask"] = np.where(kept, rng.standard_normal(shape), -np.inf).astype(np.float32)
    model = attention()
    before = run(model, inputs)["y"]
    hoist_nan_guard(model)
    np.testing.assert_array_equal(run(model, inputs)["y"], before)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_softmax_gives_whole_rows_or_none(rng: np.random.Generator, dtype: type) -> None:
    """What the rewrite relies on, of ONNX Runtime itself, whatever the scores hold."""
    import onnx_ir as ir

    kind = "float16" if dtype is np.float16 else "float"
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        f"g_ ({kind}[r, t] x) => ({kind}[r, t] p) {{ p = Softmax<axis = -1>(x) }}"
    )
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), session_options(threads=1)
    )
    for width in (1, 2, 7, 16, 17, 33, 100):
        scores = rng.standard_normal((400, width)) * rng.choice([1, 100, 1e4], (400, 1))
        for special in (np.nan, np.inf, -np.inf):
            share = rng.choice([0, 0, 0.02, 0.5, 1], (400, 1))
            scores[rng.random((400, width)) < share] = special
        (found,) = session.run(None, {"x": scores.astype(dtype)})
        missing = np.isnan(found)
        assert missing.any() and not missing.all()
        np.testing.assert_array_equal(missing.any(axis=-1), missing.all(axis=-1))


@pytest.mark.parametrize(
    ("text", "outputs", "reason"),
    [
        (ATTENTION, "float y, float g", "read by other nodes"),
        (ATTENTION + " z = Exp(g)", "float y, float z", "read by other nodes"),
        (ATTENTION.replace("axis = -1>(s1)", "axis = 2>(s1)"), "float y", "over the last axis"),
    ],
)
def test_declined_with_a_reason(text: str, outputs: str, reason: str) -> None:
    result = hoist_nan_guard(attention(text, outputs=outputs))
    assert result.changed == 0
    (said,) = result.declined
    assert reason in said.reason


@pytest.mark.parametrize(
    "guarded",
    [
        GUARDED.replace("Where(n, zero, p)", "Where(n, half, p)"),
        GUARDED.replace("Where(n, zero, p)", "Where(n, p, zero)"),
        GUARDED.replace("IsNaN(p)", "IsNaN(s1)"),
        GUARDED.replace("p = Softmax<axis = -1>(s1)", "p = Sigmoid(s1)"),
    ],
)
def test_what_is_no_guard_is_left(guarded: str) -> None:
    assert hoist_nan_guard(attention(ATTENTION.replace(GUARDED, guarded))) == PassResult(0)
