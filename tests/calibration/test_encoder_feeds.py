"""Encoders are calibrated on tokens, too."""

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build

from fptq_onnx import Samples, convert
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.encoder_feeds import encoder_feeds
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.tensor_spec import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("b", "s"))
MASK = TensorSpec("attention_mask", "int32", ("b", "s"))
TYPES = TensorSpec("token_type_ids", "int64", ("b", "s"))
PAST = TensorSpec("past_key_values.0.key", "float32", ("b", 1, "p", 4))
LOGITS = TensorSpec("logits", "float32", ("b", "s", 9))
LABELS = TensorSpec("logits", "float32", ("b", "s", 5))  # of each token; one has the id 5
CLASSES = TensorSpec("logits", "float32", ("b", 3))
HIDDEN = TensorSpec("last_hidden_state", "float32", ("b", "s", 8))
WINDOWS = TokenWindows([np.array([3, 1, 4]), np.array([1, 5])], 0, [np.array([9])])


@pytest.mark.parametrize(
    ("inputs", "outputs", "encoder"),
    [
        ([IDS, MASK], [HIDDEN], True),
        ([IDS, MASK, TYPES], [LOGITS], True),
        ([IDS, MASK], [LOGITS], False),
        ([IDS, MASK], [CLASSES], True),
        ([IDS, MASK], [LABELS], True),
        ([IDS, MASK, PAST], [CLASSES], False),
        ([IDS, MASK, PAST], [HIDDEN], False),
        ([MASK], [HIDDEN], False),
    ],
)
def test_which_models_are_encoders(inputs, outputs, encoder):
    assert (encoder_feeds(WINDOWS, inputs, outputs) is not None) == encoder


def test_what_they_are_fed():
    feeds = encoder_feeds(WINDOWS, [IDS, MASK, TYPES], [HIDDEN])
    assert feeds is not None
    first, second = feeds.samples
    np.testing.assert_array_equal(first["input_ids"], [[3, 1, 4]])
    np.testing.assert_array_equal(first["attention_mask"], [[1, 1, 1]])
    np.testing.assert_array_equal(first["token_type_ids"], [[0, 0, 0]])
    assert first["attention_mask"].dtype == np.int32
    assert second["input_ids"].shape == (1, 2)
    (held_out,) = feeds.verification
    np.testing.assert_array_equal(held_out["input_ids"], [[9]])


def test_an_encoder_converts_with_defaults(tmp_path, rng):
    text = """g (int64[B, S] input_ids, int64[B, S] token_type_ids) =>
      (float[B, S, 32] last_hidden_state) {
        e = Gather(table, input_ids) t = Gather(types, token_type_ids) x = Add(e, t)
        n = LayerNormalization(x, gain) h = MatMul(n, up) r = Relu(h) d = MatMul(r, down)
        last_hidden_state = Add(d, x) }"""
    weights = {
        "table": rng.standard_normal((50, 32)), "types": rng.standard_normal((2, 32)),
        "gain": np.ones(32), "up": rng.standard_normal((32, 64)),
        "down": rng.standard_normal((64, 32)),
    }  # fmt: skip
    model = build(text, {name: array.astype(np.float32) for name, array in weights.items()})
    ir.save(model, tmp_path / "model.onnx")
    samples = Samples(max_samples=4, max_seq_len=16)
    result = convert(tmp_path / "model.onnx", tmp_path / "out", samples=samples, quiet=True)
    assert len(result.plan.linears) == 2
    opened = samples.open(load_model(tmp_path / "model.onnx"))
    assert samples.kind == "random" and isinstance(opened, Feeds)
    (output,) = result.reports["custom"].verification["outputs"]
    assert output["name"] == "last_hidden_state" and output["sqnr_db"] > 10


def test_a_classifier_converts_with_defaults(tmp_path, rng):
    text = """g (int64[B, S] input_ids, int64[B, S] attention_mask) => (float[B, 3] logits) {
        x = Gather(table, input_ids) n = LayerNormalization(x, gain) h = MatMul(n, up) r = Relu(h)
        p = ReduceMean<keepdims = 0>(r, axes) logits = MatMul(p, classes) }"""
    weights = {
        "table": rng.standard_normal((50, 32)), "gain": np.ones(32),
        "up": rng.standard_normal((32, 64)), "classes": rng.standard_normal((64, 3)),
    }  # fmt: skip
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    model = build(text, arrays | {"axes": np.array([1])})
    ir.save(model, tmp_path / "model.onnx")
    samples = Samples(max_samples=4, max_seq_len=16)
    result = convert(tmp_path / "model.onnx", tmp_path / "out", samples=samples, quiet=True)
    (output,) = result.reports["custom"].verification["outputs"]
    assert output["name"] == "logits" and output["sqnr_db"] > 8


def test_a_classifier_with_a_cache_is_refused_at_the_start(tmp_path, rng):
    """It can be fed neither as a decoder nor as an encoder."""
    text = """g (int64[B, S] input_ids, float[B, 1, P, 4] past_key) =>
      (float[B, 3] logits, float[B, 1, Q, 4] present_key) {
        x = Gather(table, input_ids) h = MatMul(x, up) p = ReduceMean<keepdims = 0>(h, axes)
        logits = MatMul(p, classes) present_key = Identity(past_key) }"""
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("table", (50, 32)), ("up", (32, 64)), ("classes", (64, 3)))
    }
    model = build(text, arrays | {"axes": np.array([1])})
    ir.save(model, tmp_path / "model.onnx")
    said = []
    with pytest.raises(FptqError, match=r"logits .* is not \[batch, sequence, vocabulary\]"):
        convert(
            tmp_path / "model.onnx", tmp_path / "out", samples=Samples(max_samples=4),
            say=said.append,
        )  # fmt: skip
    assert not [line for line in said if line.startswith("calibration")]
