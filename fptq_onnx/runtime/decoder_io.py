"""How an exported causal language model is fed: which input and output plays which role.

Three exporters are known (optimum-onnx, torch.onnx dynamo, onnxruntime-genai's builder), and none
says in the graph which past_* input goes with which present_* output, or which axis grows. Here
that is found from names, shapes and, where they exist, the configuration files beside the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq_onnx.errors import NoDecoderError
from fptq_onnx.model_io.hf_config import architecture_of, is_masked_model, read_config
from fptq_onnx.model_io.model_proto import read_proto
from fptq_onnx.model_io.tensor_spec import FLOAT_DTYPES, TensorSpec
from fptq_onnx.runtime.kv_cache import (
    CacheTensor,
    cache_tensor,
    head_size_of_graph,
    pair_cache,
    symbolic_sizes,
)
from fptq_onnx.runtime.proto_graph import ProtoGraph

if TYPE_CHECKING:  # a model may be run without importing what loads it
    from fptq_onnx.model_io.load import LoadedModel

INPUT_IDS_NAMES = ("input_ids", "tokens", "input_tokens")
_MASK = ("attention_mask",)
_POSITIONS = ("position_ids",)
# transformers' own name for the positions of the new tokens, rank 1.
_CACHE_POSITION = ("cache_position",)
_INT_DTYPES = frozenset({"int32", "int64"})
_MASK_DTYPES = _INT_DTYPES | {"bool", "float16", "float32"}


@dataclass(frozen=True)
class DecoderIO:
    """Roles of a causal language model's inputs and outputs: plain data, no session.

    Attributes:
        input_ids: spec of the token ids, int32 or int64 [batch, sequence].
        logits: spec of the logits output [batch, sequence, vocabulary].
        attention_mask: spec of the mask [batch, past + sequence], or None.
        position_ids: spec of the positions [batch, sequence], or None.
        cache_position: spec of the positions [sequence], or None.
        cache: the KV cache, empty for a model that has none.
    """

    input_ids: TensorSpec
    logits: TensorSpec
    attention_mask: TensorSpec | None = None
    position_ids: TensorSpec | None = None
    cache_position: TensorSpec | None = None
    cache: tuple[CacheTensor, ...] = ()

    @property
    def has_cache(self) -> bool:
        """Whether the model can be fed one token at a time."""
        return bool(self.cache)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size the graph demands, None where any will do."""
        return _fixed(self.input_ids, 0)

    @property
    def fixed_sequence(self) -> int | None:
        """The number of tokens the graph demands in each call, None where any will do."""
        return _fixed(self.input_ids, 1)

    @property
    def vocab_size(self) -> int | None:
        """Width of the logits, None where the graph does not say."""
        return _fixed(self.logits, 2)

    def with_cache_types(self, inputs: Sequence[TensorSpec]) -> DecoderIO:
        """The same roles in a model whose cache is kept in other types, given its inputs."""
        types = {spec.name: spec.dtype for spec in inputs}
        return replace(
            self, cache=tuple(replace(item, dtype=types[item.past]) for item in self.cache)
        )

    @classmethod
    def from_specs(
        cls,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        genai_config: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        head_size: int | None = None,
    ) -> DecoderIO:
        """Find each input's role.

        Args:
            inputs: the inputs a caller must feed.
            outputs: the outputs; those that are neither logits nor cache are ignored.
            genai_config: onnxruntime-genai's genai_config.json, for names and head size.
            config: transformers' config.json, for the head size and the kind of model.
            head_size: head size found elsewhere (`head_size_of_graph`), used where the graph leaves
                it symbolic and the two configurations do not say.

        Raises:
            NoDecoderError: not a causal language model ("not a causal language model: ..."), or
                one with an input that this tool does not know how to feed.
        """
        decoder = _decoder_section(genai_config)
        names_in: Mapping[str, Any] = decoder.get("inputs") or {}
        names_out: Mapping[str, Any] = decoder.get("outputs") or {}
        by_name = {spec.name: spec for spec in inputs}

        def role(key: str, usual: tuple[str, ...]) -> TensorSpec | None:
            configured = names_in.get(key)
            for name in (configured, *usual) if configured else usual:
                if name in by_name:
                    return by_name[name]
            return None

        ids = find_input_ids(inputs, genai_config)
        if ids is None:
            raise _no_language_model("it has no input named input_ids")
        if ids.dtype not in _INT_DTYPES or ids.rank not in (2, None):
            raise _no_language_model(f"{ids.describe()} is not an integer [batch, sequence]")
        mask = role("attention_mask", _MASK)
        if mask is not None and (mask.rank not in (2, None) or mask.dtype not in _MASK_DTYPES):
            raise NoDecoderError(
                f"cannot feed {mask.describe()}: a mask must be [batch, past + sequence]"
            )
        positions = role("position_ids", _POSITIONS)
        if positions is not None and positions.rank not in (2, None):
            raise NoDecoderError(
                f"cannot feed {positions.describe()}: positions must be [batch, sequence]"
            )
        cache_position = role("cache_position", _CACHE_POSITION)
        known = {spec.name for spec in (ids, mask, positions, cache_position) if spec is not None}
        past = [spec for spec in inputs if spec.name not in known]
        if is_masked_model(config or {}) and not any(is_cache_name(spec.name) for spec in past):
            named = architecture_of(config or {})
            raise _no_language_model(f"config.json says {named}, which reads both sides")
        logits = find_logits(outputs, names_out.get("logits"))
        sizes = symbolic_sizes(decoder, config or {}, head_size)
        pairs = pair_cache(past, [o for o in outputs if o is not logits], names_in, names_out)
        cache = tuple(cache_tensor(p, q, ids, sizes) for p, q in pairs)
        return cls(ids, logits, mask, positions, cache_position, cache)


def decoder_io_of(loaded: LoadedModel) -> DecoderIO:
    """The roles of a loaded model's inputs and outputs, found once.

    They are found anew where a pass has changed an input or output since.

    Raises:
        NoDecoderError: not a causal language model.
    """
    inputs, outputs = loaded.inputs, loaded.outputs
    return loaded.once(
        "decoder io", (inputs, outputs), lambda: find_io(loaded.file, inputs, outputs)
    )


def find_io(
    model_file: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> DecoderIO:
    """`DecoderIO.from_specs` with what lies beside the model file taken into account.

    Args:
        model_file: the .onnx file.
        inputs: its inputs, from a session or a graph.
        outputs: its outputs.

    Raises:
        FptqError: not a causal language model.
    """
    genai = read_config(model_file.parent, "genai_config.json")
    config = read_config(model_file.parent, "config.json")

    def find(head_size: int | None) -> DecoderIO:
        return DecoderIO.from_specs(
            inputs, outputs, genai_config=genai, config=config, head_size=head_size
        )

    if genai or config:
        return find(None)
    return find(head_size_of_graph(ProtoGraph(read_proto(model_file).graph)))


def _no_language_model(wrong: str) -> NoDecoderError:
    return NoDecoderError(f"not a causal language model: {wrong}")


def find_input_ids(
    inputs: Sequence[TensorSpec], genai_config: Mapping[str, Any] | None = None
) -> TensorSpec | None:
    """The input that takes token ids; None for a model that is no language model."""
    configured = (_decoder_section(genai_config).get("inputs") or {}).get("input_ids")
    by_name = {spec.name: spec for spec in inputs}
    return next((by_name[name] for name in (configured, *INPUT_IDS_NAMES) if name in by_name), None)


def _fixed(spec: TensorSpec, axis: int) -> int | None:
    if spec.shape is None or axis >= len(spec.shape):
        return None
    size = spec.shape[axis]
    return size if isinstance(size, int) else None


def _decoder_section(genai_config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    model = (genai_config or {}).get("model")
    decoder = model.get("decoder") if isinstance(model, Mapping) else None
    return decoder if isinstance(decoder, Mapping) else {}


def gives_logits(outputs: Sequence[TensorSpec], largest_id: int = 0) -> bool:
    """Whether an output looks like the logits of a language model.

    Args:
        outputs: of the model.
        largest_id: a token id that its vocabulary holds; labels of tokens are fewer.
    """
    try:
        width = _fixed(find_logits(outputs, None), 2)
    except NoDecoderError:
        return False
    return width is None or width > largest_id


def find_logits(outputs: Sequence[TensorSpec], configured: str | None = None) -> TensorSpec:
    """The output that looks like logits.

    Args:
        outputs: of the model.
        configured: its name in genai_config.json.

    Raises:
        NoDecoderError: there is none.
    """
    by_name = {spec.name: spec for spec in outputs}
    for name in (configured, "logits", "lm_logits"):
        if name in by_name:
            if by_name[name].rank in (3, None):
                return by_name[name]
            found = by_name[name].describe()
            raise _no_language_model(f"{found} is not [batch, sequence, vocabulary]")
    for spec in outputs:
        if spec.rank != 3 or spec.dtype not in FLOAT_DTYPES or is_cache_name(spec.name):
            continue
        if "hidden" not in spec.name.lower():  # last_hidden_state of an encoder
            return spec
    raise _no_language_model("it has no logits output")


def is_cache_name(name: str) -> bool:
    """Whether a value's name speaks of cached keys or values."""
    return re.search(r"past|present|cache|\bk(ey)?s?\b|\bv(alue)?s?\b", name.lower()) is not None
