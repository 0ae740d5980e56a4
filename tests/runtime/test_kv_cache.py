"""Roles of a decoder's inputs from specs alone: pairs, layouts, refusals."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import TensorSpec, graph_inputs, graph_outputs
from fptq_onnx.runtime.decoder_io import DecoderIO, find_io

DEMO = Path(__file__).resolve().parents[2] / "models" / "tinystories-7m"
IDS = TensorSpec("input_ids", "int64", ("batch_size", "sequence_length"))
LOGITS = TensorSpec("logits", "float32", ("batch_size", "sequence_length", 100))
Shape = tuple[int | str, ...]


def cache_spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.{}.{}", "present.{}.{}"),
        ("past_key_values_{}_{}", "present_key_values_{}_{}"),
        ("past.{}.{}", "new_cache_{}_{}"),
        ("past_{1}_{0}", "present.{0}.{1}"),
    ],
)
def test_pairs_by_name_whatever_the_order(past: str, present: str) -> None:
    kinds = [(layer, kind) for layer in range(11) for kind in ("key", "value")]
    inputs = [cache_spec(past.format(*k), "batch_size", 2, "past_len", 8) for k in kinds]
    outputs = [cache_spec(present.format(*k), "batch_size", 2, "total", 8) for k in kinds]
    io = DecoderIO.from_specs([IDS, *inputs], [*reversed(outputs), LOGITS])
    assert [(t.past, t.present) for t in io.cache] == [
        (past.format(*k), present.format(*k)) for k in kinds
    ]


def test_pairs_by_order_where_names_say_nothing() -> None:
    inputs = [cache_spec(name, "b", 2, "s62", 8) for name in ("alpha", "beta")]
    outputs = [cache_spec(name, "b", 2, "s63", 8) for name in ("gamma", "delta")]
    io = DecoderIO.from_specs([IDS, *inputs], [LOGITS, *outputs])
    assert [(t.past, t.present) for t in io.cache] == [("alpha", "gamma"), ("beta", "delta")]


def test_pairs_as_the_configuration_names_them() -> None:
    names = {
        "inputs": {"past_key_names": "k_in_%d", "past_value_names": "v_in_%d"},
        "outputs": {"present_key_names": "a.%d", "present_value_names": "b.%d"},
    }
    inputs = [cache_spec(n, "batch_size", 2, "past", 8) for n in ("v_in_0", "k_in_0")]
    outputs = [cache_spec(n, "batch_size", 2, "total", 8) for n in ("a.0", "b.0")]
    io = DecoderIO.from_specs(
        [IDS, *inputs], [LOGITS, *outputs], genai_config={"model": {"decoder": names}}
    )
    assert [(t.past, t.present) for t in io.cache] == [("v_in_0", "b.0"), ("k_in_0", "a.0")]


@pytest.mark.parametrize(
    ("past", "present", "empty", "sequence_axis"),
    [
        (("batch_size", 2, "past_len", 8), ("batch_size", 2, "total", 8), (1, 2, 0, 8), 2),
        (("batch_size", "past_len", 2, 8), ("batch_size", "total", 2, 8), (1, 0, 2, 8), 1),
        (("batch_size", 2, 8, "past_len"), ("batch_size", 2, 8, "total"), (1, 2, 8, 0), 3),
        (("batch_size", 2, "s62", 8), ("batch_size", 2, "s7", 8), (1, 2, 0, 8), 2),
        (("batch_size", "past", 16), ("batch_size", "total", 16), (1, 0, 16), 1),
        ((2, "batch_size", 4, "past", 8), (2, "batch_size", 4, "t", 8), (2, 1, 4, 0, 8), 3),
        # Only the name, then only the growth, then neither says which of two axes is meant.
        (("batch_size", "past", "h", 8), ("batch_size", "t", "g", 8), (1, 0, 4, 8), 1),
        (("batch_size", "u", "h", 8), ("batch_size", "t", "h", 8), (1, 0, 4, 8), 1),
        (("batch_size", "h", "u", "d"), ("batch_size", "x", "y", "z"), (1, 4, 0, 16), 2),
    ],
)
def test_layouts(past: Shape, present: Shape, empty: Shape, sequence_axis: int) -> None:
    config = {"model": {"decoder": {"head_size": 16, "num_key_value_heads": 4}}}
    io = DecoderIO.from_specs(
        [IDS, cache_spec("past.0.key", *past)],
        [LOGITS, cache_spec("present.0.key", *present)],
        genai_config=config,
    )
    assert io.cache[0].shape == empty
    assert io.cache[0].sequence_axis == sequence_axis


def test_head_size_comes_from_the_graph_where_no_file_says_it(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).symlink_to(DEMO / name)
    graph = ir.load(DEMO / "model.onnx").graph
    io = find_io(tmp_path / "model.onnx", graph_inputs(graph), graph_outputs(graph))
    assert {tensor.shape for tensor in io.cache} == {(1, 4, 0, 32)}


def test_head_size_from_the_transformers_configuration() -> None:
    past = cache_spec("past.0.key", "batch_size", "h", "past", "d")
    present = cache_spec("present.0.key", "batch_size", "h", "total", "d")
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    for config in (sizes, {"text_config": sizes}):
        io = DecoderIO.from_specs([IDS, past], [LOGITS, present], config=config)
        assert io.cache[0].shape == (1, 3, 0, 16)
    own = DecoderIO.from_specs([IDS, past], [LOGITS, present], config={**sizes, "head_dim": 32})
    assert own.cache[0].shape == (1, 3, 0, 32)


@pytest.mark.parametrize(
    ("past", "present", "message"),
    [
        (cache_spec("past.0.key", 1, 2, 64, 8), (1, 2, 65, 8), "fixed length"),
        (cache_spec("past.0.key", "batch_size", 2, "past", "d"), (1, 2, "t", "d"), "axis 3 open"),
        (TensorSpec("past.0.key", "float32", None), (1, 2, "t", 8), "has no shape"),
        (TensorSpec("token_type_ids", "int64", ("b", "s")), (1, 2, "t", 8), "cannot feed"),
    ],
)
def test_refusals(past: TensorSpec, present: Shape, message: str) -> None:
    with pytest.raises(FptqError, match=message):
        DecoderIO.from_specs([IDS, past], [LOGITS, cache_spec("present.0.key", *present)])


def test_a_cache_without_its_output_is_refused() -> None:
    inputs = [cache_spec(f"past.0.{k}", "batch_size", 2, "past", 8) for k in ("key", "value")]
    present = cache_spec("present.0.key", "batch_size", 2, "total", 8)
    with pytest.raises(FptqError, match=r"next step's past\.0\.value"):
        DecoderIO.from_specs([IDS, *inputs], [LOGITS, present])


def test_what_is_no_language_model() -> None:
    pixels = TensorSpec("pixels", "float32", ("batch", 3, 8, 8))
    with pytest.raises(FptqError, match=r"^not a causal language model: it has no input"):
        DecoderIO.from_specs([pixels], [LOGITS])
    with pytest.raises(FptqError, match=r"^not a causal language model: it has no logits"):
        DecoderIO.from_specs([IDS], [TensorSpec("pooled", "float32", ("batch", 8))])
