"""genai_config.json from inputs and outputs, and each reason why there can be none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.hf_config import SpecialIds
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.packaging.genai_layout import make_genai_config
from fptq_onnx.runtime.decoder_io import DecoderIO
from fptq_onnx.runtime.kv_cache import CacheTensor

SPECIAL = SpecialIds(bos=1, eos=(2,), context_length=256)
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "total"))
LOGITS = TensorSpec("logits", "float32", ("batch", "sequence", 2048))


def cache(
    past: str,
    present: str,
    layers: Sequence[int] = range(3),
    shape: tuple[int, ...] = (1, 4, 0, 32),
) -> tuple[CacheTensor, ...]:
    """{} is the layer, [] is key and value."""
    return tuple(
        CacheTensor(
            past.replace("[]", kind).replace("{}", str(layer)),
            present.replace("[]", kind).replace("{}", str(layer)),
            "float32", shape, 0, 2,
        )
        for layer in layers
        for kind in ("key", "value")
    )  # fmt: skip


def decoder(tensors: tuple[CacheTensor, ...], **changes: object) -> DecoderIO:
    return replace(DecoderIO(IDS, LOGITS, MASK, cache=tensors), **changes)


USUAL = cache("past_key_values.{}.[]", "present.{}.[]")


def test_the_configuration() -> None:
    positions = TensorSpec("position_ids", "int64", ("batch", "sequence"))
    made = make_genai_config(
        decoder(USUAL, position_ids=positions), SPECIAL, {"num_attention_heads": 8},
        shared_cache=True,
    )  # fmt: skip
    model = made["model"]
    assert model["decoder"]["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert model["decoder"]["outputs"] == {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    }
    sizes = {key: model["decoder"][key] for key in (
        "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads",
    )}  # fmt: skip
    assert sizes == {
        "head_size": 32, "hidden_size": 256, "num_attention_heads": 8, "num_hidden_layers": 3,
        "num_key_value_heads": 4,
    }  # fmt: skip
    assert (model["vocab_size"], model["context_length"]) == (2048, 256)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 2, 2)
    assert made["search"]["past_present_share_buffer"] is True


def test_other_names_and_several_ends() -> None:
    tensors = cache("cache_[]_{}", "new_cache_[]_{}")
    special = SpecialIds(eos=(7, 9), vocab_size=50)
    wide = replace(LOGITS, shape=("batch", "sequence", "vocab"))
    made = make_genai_config(decoder(tensors, logits=wide), special, {}, shared_cache=False)
    assert made["model"]["decoder"]["inputs"]["past_key_names"] == "cache_key_%d"
    assert made["model"]["decoder"]["outputs"]["present_value_names"] == "new_cache_value_%d"
    assert made["model"]["eos_token_id"] == [7, 9]
    assert made["model"]["vocab_size"] == 50
    assert "bos_token_id" not in made["model"]
    assert made["search"]["past_present_share_buffer"] is False


def test_no_token_that_ends_a_text() -> None:
    """onnxruntime-genai refuses an id that is not in the vocabulary; leaving it out it takes."""
    made = make_genai_config(decoder(USUAL), SpecialIds(), {}, shared_cache=False)
    assert "eos_token_id" not in made["model"]
    assert made["model"]["pad_token_id"] == 0


CANNOT = {
    "no cache": (decoder(()), "it has no KV cache"),
    "cache positions": (
        decoder(USUAL, cache_position=TensorSpec("cache_position", "int64", ("s",))),
        "it wants the input cache_position",
    ),
    "a fixed batch": (
        decoder(USUAL, input_ids=replace(IDS, shape=(1, "sequence"))),
        "fixed number of sequences",
    ),
    "another layout": (
        decoder(tuple(replace(t, sequence_axis=1) for t in USUAL)), r"is not \[batch, heads",
    ),
    "layers of several sizes": (
        decoder((*USUAL[:-1], replace(USUAL[-1], shape=(1, 2, 0, 32)))), "different sizes",
    ),
    "no numbers": (decoder(cache("past_[]", "present_[]", [0])), "does not count the layers"),
    "two numbers": (
        decoder(cache("past_{}_[]_1", "present_{}_[]_1")), "does not count the layers",
    ),
    "not from 0": (
        decoder(cache("past.{}.[]", "present.{}.[]", [1, 2])), "do not count the layers from 0",
    ),
    "crossed layers": (
        decoder(tuple(
            replace(a, present=b.present) for a, b in zip(USUAL, USUAL[::-1], strict=True)
        )),
        "goes on as",
    ),
    "no kinds": (
        decoder(tuple(
            replace(t, past=f"past_{i}", present=f"present_{i}") for i, t in enumerate(USUAL)
        )),
        "cannot be told apart",
    ),
    "no vocabulary": (
        decoder(USUAL, logits=replace(LOGITS, shape=("b", "s", "v"))), "how many tokens it knows",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("io", "match"), CANNOT.values(), ids=CANNOT)
def test_says_why_not(io: DecoderIO, match: str) -> None:
    with pytest.raises(FptqError, match=rf"onnxruntime-genai cannot run the model: .*{match}"):
        make_genai_config(io, SPECIAL, {}, shared_cache=False)
