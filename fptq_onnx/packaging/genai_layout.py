"""genai_config.json for a model that came without one, if onnxruntime-genai can feed it.

It feeds token ids, a mask and positions, and keys and values of each layer apart, each
[batch, heads, tokens, size], under names that count the layers.
"""

from __future__ import annotations

import re
from typing import Any

from fptq_onnx.decoder_io import DecoderIO
from fptq_onnx.errors import FptqError
from fptq_onnx.kv_cache import CacheTensor
from fptq_onnx.model_configs import SpecialIds

# onnxruntime-genai's name for a decoder of no particular family.
_TYPE = "decoder"
# What a model that names no context length is taken to hold; memory is reserved for it.
_DEFAULT_CONTEXT = 2048


def make_genai_config(
    io: DecoderIO, special: SpecialIds, config: dict[str, Any], *, shared_cache: bool
) -> dict[str, Any]:
    """The configuration, without the names of files.

    Args:
        io: the model's inputs and outputs.
        special: ids and sizes that the model's files name.
        config: transformers' config.json, {} where there is none.
        shared_cache: past and present may be one buffer.

    Raises:
        FptqError: onnxruntime-genai cannot feed such a model; the sentence says why.
    """
    _check(io)
    keys, values = _patterns(io)
    layers = len(io.cache) // 2
    _, heads, _, size = io.cache[0].shape
    context = special.context_length or _DEFAULT_CONTEXT
    vocabulary = io.vocab_size or special.vocab_size
    if vocabulary is None:
        raise _cannot("neither the graph nor config.json says how many tokens it knows")
    inputs = {
        "input_ids": io.input_ids.name,
        "past_key_names": keys[0],
        "past_value_names": values[0],
    }
    for role in ("attention_mask", "position_ids"):
        spec = getattr(io, role)
        if spec is not None:
            inputs[role] = spec.name
    eos = known_ends(special, vocabulary)
    query_heads = config.get("num_attention_heads")
    query_heads = query_heads if isinstance(query_heads, int) else heads
    model: dict[str, Any] = {
        "context_length": context,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "head_size": size,
            "hidden_size": query_heads * size,
            "inputs": inputs,
            "outputs": {
                "logits": io.logits.name,
                "present_key_names": keys[1],
                "present_value_names": values[1],
            },
            "num_attention_heads": query_heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": heads,
        },
        "type": _TYPE,
        "vocab_size": vocabulary,
        # It wants one to fill up shorter sequences with; any id does, they are masked.
        "pad_token_id": eos[0] if eos else 0,
    }
    if eos:  # without one it goes on until max_length
        model["eos_token_id"] = eos if len(eos) > 1 else eos[0]
    if special.bos is not None and special.bos < vocabulary:
        model["bos_token_id"] = special.bos
    search = {
        "do_sample": False,
        "max_length": context,
        "past_present_share_buffer": shared_cache,
    }
    return {"model": model, "search": search}


def known_ends(special: SpecialIds, vocabulary: int | None) -> list[int]:
    """Ids that end a text, without those that onnxruntime-genai refuses: beyond the vocabulary."""
    return [end for end in special.eos if vocabulary is None or end < vocabulary]


def _cannot(why: str) -> FptqError:
    return FptqError(
        f"onnxruntime-genai cannot run the model: {why}; "
        "export it with onnxruntime-genai's builder (fptq-onnx export --exporter genai)"
    )


def _check(io: DecoderIO) -> None:
    if not io.has_cache:
        raise _cannot("it has no KV cache")
    if io.cache_position is not None:
        raise _cannot(f"it wants the input {io.cache_position.name}")
    if io.fixed_batch is not None or io.fixed_sequence is not None:
        raise _cannot("it takes a fixed number of sequences or tokens only")
    for tensor in io.cache:
        axes = (len(tensor.shape), tensor.batch_axis, tensor.sequence_axis)
        if axes != (4, 0, 2):
            raise _cannot(f"its cache {tensor.past} is not [batch, heads, tokens, size]")
    if len({tensor.shape for tensor in io.cache}) > 1:
        raise _cannot("its layers have caches of different sizes")


def _patterns(io: DecoderIO) -> tuple[tuple[str, str], tuple[str, str]]:
    """(past, present) with %d for the layer, of keys and of values.

    Raises:
        FptqError: the names do not count the layers.
    """
    kinds: dict[tuple[str, str], set[int]] = {}
    for tensor in io.cache:
        past, layer = _counted(tensor, tensor.past)
        present, other = _counted(tensor, tensor.present)
        if layer != other:
            raise _cannot(f"its cache {tensor.past} goes on as {tensor.present}")
        kinds.setdefault((past, present), set()).add(layer)
    numbers = set(range(len(io.cache) // 2))
    of_keys = [names for names in kinds if "key" in names[0]]
    of_values = [names for names in kinds if "value" in _without_key_values(names[0])]
    of_keys = [names for names in of_keys if names not in of_values]
    if len(kinds) != 2 or len(of_keys) != 1 or len(of_values) != 1:
        raise _cannot("keys and values of its cache cannot be told apart by their names")
    if any(layers != numbers for layers in kinds.values()):
        raise _cannot("the names of its cache do not count the layers from 0")
    return of_keys[0], of_values[0]


def _without_key_values(name: str) -> str:
    """past_key_values.%d.key names a key, though both words are in it."""
    return name.replace("key_values", "")


def _counted(tensor: CacheTensor, name: str) -> tuple[str, int]:
    """A name with %d in place of its only number, and the number."""
    numbers = re.findall(r"\d+", name)
    if len(numbers) != 1 or "%" in name:
        raise _cannot(f"the name of its cache {tensor.past} does not count the layers")
    return re.sub(r"\d+", "%d", name), int(numbers[0])
