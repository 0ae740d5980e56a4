"""The KV cache of an exported decoder: which past goes with which present, and which axis grows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fptq_onnx.errors import FptqError, NoDecoderError
from fptq_onnx.model_io.tensor_spec import CACHE_DTYPES, TensorSpec
from fptq_onnx.runtime.proto_graph import ProtoGraph, input_of, integers_of


@dataclass(frozen=True)
class CacheTensor:
    """One past input and the present output that replaces it at the next step.

    Attributes:
        past: input name.
        present: output name.
        dtype: "float32", "float16", "bfloat16", or "int8" for codes.
        shape: shape of the EMPTY cache, batch axis 1 and sequence axis 0.
        batch_axis: axis that holds the batch.
        sequence_axis: axis that holds the tokens seen so far.
    """

    past: str
    present: str
    dtype: str
    shape: tuple[int, ...]
    batch_axis: int
    sequence_axis: int


def pair_cache(
    past: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    names_in: Mapping[str, Any],
    names_out: Mapping[str, Any],
) -> list[tuple[TensorSpec, TensorSpec]]:
    """Give each past input its present output: as configured, else by name, else by order.

    Args:
        past: the inputs that have no other role.
        outputs: the outputs other than logits; those that are no cache are passed over.
        names_in: genai_config.json's decoder.inputs, or {}.
        names_out: genai_config.json's decoder.outputs, or {}.

    Raises:
        NoDecoderError: an input that cannot be a cache, or a cache without its output.
    """
    for spec in past:
        if spec.dtype not in CACHE_DTYPES or (spec.rank is not None and spec.rank < 3):
            raise NoDecoderError(
                f"cannot feed the input {spec.describe()}: it is none of token ids, attention "
                "mask, positions and KV cache"
            )
    configured = _configured_names(past, names_in, names_out)
    by_name = {spec.name: spec for spec in outputs}
    # A signature that two outputs share identifies neither.
    by_signature: dict[tuple[str, ...], TensorSpec | None] = {}
    for spec in outputs:
        key = _signature(spec.name)
        by_signature[key] = None if key in by_signature else spec
    pairs = []
    for spec in past:
        present = by_name.get(configured.get(spec.name, "")) or by_signature.get(
            _signature(spec.name)
        )
        if present is not None:
            pairs.append((spec, present))
    if len(pairs) == len(past) and len({q.name for _, q in pairs}) == len(past):
        return pairs
    floats = [o for o in outputs if o.dtype in CACHE_DTYPES and (o.rank is None or o.rank >= 3)]
    if len(floats) == len(past):
        return list(zip(past, floats, strict=True))
    paired = {p.name for p, _ in pairs}
    unpaired = next((s.name for s in past if s.name not in paired), past[-1].name)
    raise NoDecoderError(
        f"cannot tell which output is the next step's {unpaired}: past_key_values.N.key goes with "
        "present.N.key in an export"
    )


def _configured_names(
    past: Sequence[TensorSpec], names_in: Mapping[str, Any], names_out: Mapping[str, Any]
) -> dict[str, str]:
    """Pairs that genai_config.json's patterns, such as `past_key_values.%d.key`, spell out."""
    pairs = {}
    for kind in ("key_names", "value_names", "names"):
        pattern_in, pattern_out = names_in.get(f"past_{kind}"), names_out.get(f"present_{kind}")
        if not isinstance(pattern_in, str) or not isinstance(pattern_out, str):
            continue
        matcher = re.compile(re.escape(pattern_in).replace("%d", r"(\d+)"))
        for spec in past:
            if found := matcher.fullmatch(spec.name):
                pairs[spec.name] = pattern_out.replace("%d", found.group(1))
    return pairs


def _signature(name: str) -> tuple[str, ...]:
    """What past and present names of one cache tensor share: its numbers and its kind, in order.

    past_key_values.3.key, present_3_key and present.key.3 all give ("3", "key") up to order.
    """
    words = re.findall(r"[a-z]+|\d+", name.lower().replace("key_values", ""))
    kinds = {"k": "key", "keys": "key", "v": "value", "values": "value", "val": "value"}
    words = [kinds.get(word, word) for word in words]
    filler = {"past", "present", "new", "cache", "kv", "in", "out", "input", "output", "updated"}
    return tuple(sorted(word for word in words if word not in filler))


def symbolic_sizes(
    decoder: Mapping[str, Any], config: Mapping[str, Any], head_size: int | None
) -> tuple[int | None, int | None]:
    """Heads of the cache and head size, for axes the graph leaves symbolic.

    Args:
        decoder: genai_config.json's model.decoder, trusted first.
        config: transformers' config.json.
        head_size: found elsewhere; trusted before hidden size / heads, which is wrong for models
            that set a head size of their own.
    """
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        config = nested
    heads = (
        decoder.get("num_key_value_heads")
        or config.get("num_key_value_heads")
        or config.get("num_attention_heads")
        or config.get("n_head")
    )
    size = decoder.get("head_size") or config.get("head_dim") or head_size
    if size is None:
        hidden = config.get("hidden_size") or config.get("n_embd")
        all_heads = config.get("num_attention_heads") or config.get("n_head")
        if isinstance(hidden, int) and isinstance(all_heads, int) and all_heads > 0:
            size = hidden // all_heads
    return heads if isinstance(heads, int) else None, size if isinstance(size, int) else None


def cache_tensor(
    past: TensorSpec, present: TensorSpec, ids: TensorSpec, sizes: tuple[int | None, int | None]
) -> CacheTensor:
    """Lay out one cache tensor.

    Args:
        past: its input.
        present: the output paired with it.
        ids: the token ids input, whose first axis names the batch.
        sizes: (heads, head size) for axes the graph leaves symbolic, as `symbolic_sizes` found.

    Raises:
        FptqError: the length is fixed, or a size cannot be found.
    """
    if past.shape is None:
        raise FptqError(f"the KV cache input {past.name} has no shape; export it with its rank")
    rank = len(past.shape)
    batch_axis = _batch_axis(past, ids)
    sequence_axis = _sequence_axis(past, present, batch_axis)
    heads, head_size = sizes
    shape = []
    for axis, size in enumerate(past.shape):
        if axis == sequence_axis:
            shape.append(0)
        elif isinstance(size, int):
            shape.append(size)
        elif axis == batch_axis:
            shape.append(1)
        else:
            # The head size is the last axis, or next to last where the keys are stored transposed.
            is_head_size = axis == rank - 1 or sequence_axis == rank - 1 == axis + 1
            found = head_size if is_head_size else heads
            if found is None:
                raise FptqError(
                    f"the KV cache {past.describe()} leaves axis {axis} open; put the model's "
                    "genai_config.json or config.json beside it, which says how large it is"
                )
            shape.append(found)
    return CacheTensor(past.name, present.name, past.dtype, tuple(shape), batch_axis, sequence_axis)


def _batch_axis(past: TensorSpec, ids: TensorSpec) -> int:
    assert past.shape is not None
    batch = ids.shape[0] if ids.shape else None
    if isinstance(batch, str) and batch in past.shape:
        return past.shape.index(batch)
    # Keys and values stacked, [2, batch, heads, past, head size], are gpt2's old form.
    return 1 if len(past.shape) == 5 and past.shape[0] == 2 else 0


def _sequence_axis(past: TensorSpec, present: TensorSpec, batch_axis: int) -> int:
    """The axis that grows: named past*, else changed from past to present, else the usual one."""
    assert past.shape is not None
    open_axes = [
        axis
        for axis, size in enumerate(past.shape)
        if not isinstance(size, int) and axis != batch_axis
    ]
    if not open_axes:
        raise FptqError(
            f"the KV cache {past.describe()} has a fixed length; export the model with a cache "
            "that grows (a symbolic past length)"
        )
    named = [axis for axis in open_axes if "past" in str(past.shape[axis]).lower()]
    if present.shape is not None and len(present.shape) == len(past.shape):
        grown = [axis for axis in open_axes if past.shape[axis] != present.shape[axis]]
    else:
        grown = []
    for candidates in (named, grown, open_axes):
        if len(candidates) == 1:
            return candidates[0]
    usual = len(past.shape) - 2
    if usual in open_axes:
        return usual
    raise FptqError(f"cannot tell which axis of the KV cache {past.describe()} holds the tokens")


def head_size_of_graph(graph: ProtoGraph) -> int | None:
    """Head size from the graph's own GroupQueryAttention nodes, None where there are none.

    onnxruntime-genai's builder leaves the cache's last axis symbolic ("kv_cache_dim"); the width of
    the query, or of the rotary table, still says it.
    """
    for node in graph.proto.node:
        if node.op_type != "GroupQueryAttention":
            continue
        sizes = integers_of(node)
        rotary = graph.shapes.get(input_of(node, 7))
        if rotary is not None and len(rotary) == 2:
            half = rotary[1]
            # A partial rotation covers less than the head; only the query's width tells then.
            if isinstance(half, int) and not sizes.get("rotary_embedding_dim", 0):
                return 2 * half
        heads = sizes.get("num_heads", 0)
        if not input_of(node, 1):  # query, key and value packed side by side
            heads += 2 * sizes.get("kv_num_heads", 0)
        query = graph.shapes.get(input_of(node, 0))
        if not query or not heads:
            continue
        width = query[-1]
        if isinstance(width, int) and width % heads == 0:
            return width // heads
    return None
