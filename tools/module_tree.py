"""The linears of Hugging Face's modules, from a configuration alone: what a graph ought to hold.

Written from transformers' model classes (nn.Linear and Conv1D), not from any graph; make
test-export compares it with the classes themselves. Fused modules are given by their parts, since
exporters fuse and split them at will: c_attn of gpt2 is q, k and v. An encoder's pooler is none of
them: neither masked tokens nor hidden states are computed with it, and exports leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD, OTHER = "head", "other"


@dataclass(frozen=True)
class Module:
    """One linear of transformers.

    name: below the layer, or of the whole model.
    parts: what it computes, each with its output channels; None where they are not known.
    inputs: input channels; None where they are not known.
    """

    name: str
    parts: tuple[tuple[str, int | None], ...]
    inputs: int | None


@dataclass(frozen=True)
class ModuleTree:
    """The linears of a model: the same ones in every layer, and those outside of layers.

    outer: the head, and what else is there once; empty for an encoder without a head.
    vocabulary: token ids; None where they are not known.
    encoder: whether it is none that writes text.
    """

    model_type: str
    layers: int
    layer: tuple[Module, ...]
    outer: tuple[Module, ...]
    vocabulary: int | None = None
    encoder: bool = False

    @property
    def count(self) -> int:
        """Linears in all."""
        return self.layers * len(self.layer) + len(self.outer)

    def _everywhere(self) -> list[tuple[int | None, Module]]:
        in_layers = [(number, module) for number in range(self.layers) for module in self.layer]
        return [*in_layers, *((None, module) for module in self.outer)]

    def parts(self) -> dict[tuple[int | None, str], tuple[int | None, int | None]]:
        """(layer, part) -> input and output channels."""
        return {
            (number, part): (module.inputs, outputs)
            for number, module in self._everywhere()
            for part, outputs in module.parts
        }

    def covered(self, there: set[tuple[int | None, str]]) -> int:
        """How many modules all of whose parts are among those given."""
        return sum(
            all((number, part) in there for part, _ in module.parts)
            for number, module in self._everywhere()
        )


def module_tree(config: Mapping[str, Any]) -> ModuleTree:
    """The tree of a config.json, or of what is known of one.

    Args:
        config: at least model_type and the number of layers.

    Raises:
        KeyError: an architecture that is not listed here.
    """
    kind = config["model_type"]
    hidden = _first(config, "hidden_size", "n_embd", "dim")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    size = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    q = heads * size if heads and size else None
    kv = (_heads_of_keys(config) or heads or 0) * (size or 0) or None
    inner = _first(config, "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner",
                   "hidden_dim")  # fmt: skip
    if inner is None and kind in ("gpt2", "bloom", "falcon"):
        inner = 4 * hidden if hidden else None
    layer = tuple(
        Module(name, tuple(zip(parts, outputs, strict=True)), inputs)
        for name, parts, outputs, inputs in _LAYERS[_FAMILY[kind]](hidden, q, kv, inner)
    )
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers")
    assert layers is not None
    vocabulary = _first(config, "vocab_size")
    return ModuleTree(kind, layers, layer, _outer(config, hidden), vocabulary, kind in _ENCODERS)


def _heads_of_keys(config: Mapping[str, Any]) -> int | None:
    """Heads of keys and values, where there are fewer of them than of queries."""
    if config["model_type"] != "falcon":
        return _first(config, "num_key_value_heads")
    if config.get("new_decoder_architecture"):
        return _first(config, "num_kv_heads")
    return 1 if config.get("multi_query", True) else None


def _outer(config: Mapping[str, Any], hidden: int | None) -> tuple[Module, ...]:
    """What is there once: of a decoder its head, of an encoder what its class says."""
    kind, vocabulary = config["model_type"], config.get("vocab_size")
    if kind not in _ENCODERS:
        name = "embed_out" if kind == "gpt_neox" else "lm_head"
        return (Module(name, ((HEAD, vocabulary),), hidden),)
    if not str((config.get("architectures") or [""])[0]).endswith("ForMaskedLM"):
        return ()
    transform, head = _ENCODERS[kind]
    return (
        Module(transform, ((OTHER, hidden),), hidden),
        Module(head, ((HEAD, vocabulary),), hidden),
    )


def read_config(text: str) -> dict[str, Any]:
    """A configuration from `file.json` (config.json or genai_config.json) or `type:layers`."""
    kind, colon, layers = text.partition(":")
    if colon and layers.isdigit():
        return {"model_type": kind, "num_hidden_layers": int(layers)}
    data: dict[str, Any] = json.loads(Path(text).read_text(encoding="utf-8"))
    if "model_type" in data:
        return data
    decoder = data["model"]["decoder"]  # genai_config.json; it does not tell the MLP's width
    return {**decoder, "head_dim": decoder["head_size"], "model_type": data["model"]["type"],
            "vocab_size": data["model"]["vocab_size"]}  # fmt: skip


_Size = int | None
_Rows = list[tuple[str, tuple[str, ...], tuple[_Size, ...], _Size]]


def _llama(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("self_attn.q_proj", ("q",), (q,), hidden),
        ("self_attn.k_proj", ("k",), (kv,), hidden),
        ("self_attn.v_proj", ("v",), (kv,), hidden),
        ("self_attn.o_proj", ("o",), (hidden,), q),
        ("mlp.gate_proj", ("gate",), (inner,), hidden),
        ("mlp.up_proj", ("up",), (inner,), hidden),
        ("mlp.down_proj", ("down",), (hidden,), inner),
    ]


def _phi3(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("self_attn.qkv_proj", ("q", "k", "v"), (q, kv, kv), hidden),
        ("self_attn.o_proj", ("o",), (hidden,), q),
        ("mlp.gate_up_proj", ("gate", "up"), (inner, inner), hidden),
        ("mlp.down_proj", ("down",), (hidden,), inner),
    ]


def _opt(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("self_attn.k_proj", ("k",), (kv,), hidden),
        ("self_attn.v_proj", ("v",), (kv,), hidden),
        ("self_attn.q_proj", ("q",), (q,), hidden),
        ("self_attn.out_proj", ("o",), (hidden,), q),
        ("fc1", ("fc1",), (inner,), hidden),
        ("fc2", ("fc2",), (hidden,), inner),
    ]


def _gpt2(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("attn.c_attn", ("q", "k", "v"), (q, kv, kv), hidden),
        ("attn.c_proj", ("o",), (hidden,), q),
        ("mlp.c_fc", ("fc1",), (inner,), hidden),
        ("mlp.c_proj", ("fc2",), (hidden,), inner),
    ]


def _bloom(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("self_attention.query_key_value", ("q", "k", "v"), (q, kv, kv), hidden),
        ("self_attention.dense", ("o",), (hidden,), q),
        ("mlp.dense_h_to_4h", ("fc1",), (inner,), hidden),
        ("mlp.dense_4h_to_h", ("fc2",), (hidden,), inner),
    ]


def _gpt_neox(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("attention.query_key_value", ("q", "k", "v"), (q, kv, kv), hidden),
        ("attention.dense", ("o",), (hidden,), q),
        ("mlp.dense_h_to_4h", ("fc1",), (inner,), hidden),
        ("mlp.dense_4h_to_h", ("fc2",), (hidden,), inner),
    ]


def _phi(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("self_attn.q_proj", ("q",), (q,), hidden),
        ("self_attn.k_proj", ("k",), (kv,), hidden),
        ("self_attn.v_proj", ("v",), (kv,), hidden),
        ("self_attn.dense", ("o",), (hidden,), q),
        ("mlp.fc1", ("fc1",), (inner,), hidden),
        ("mlp.fc2", ("fc2",), (hidden,), inner),
    ]


def _bert(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("attention.self.query", ("q",), (q,), hidden),
        ("attention.self.key", ("k",), (kv,), hidden),
        ("attention.self.value", ("v",), (kv,), hidden),
        ("attention.output.dense", ("o",), (hidden,), q),
        ("intermediate.dense", ("fc1",), (inner,), hidden),
        ("output.dense", ("fc2",), (hidden,), inner),
    ]


def _distilbert(hidden: _Size, q: _Size, kv: _Size, inner: _Size) -> _Rows:
    return [
        ("attention.q_lin", ("q",), (q,), hidden),
        ("attention.k_lin", ("k",), (kv,), hidden),
        ("attention.v_lin", ("v",), (kv,), hidden),
        ("attention.out_lin", ("o",), (hidden,), q),
        ("ffn.lin1", ("fc1",), (inner,), hidden),
        ("ffn.lin2", ("fc2",), (hidden,), inner),
    ]


_LAYERS = {
    "llama": _llama, "phi3": _phi3, "opt": _opt, "gpt2": _gpt2, "bloom": _bloom,
    "gpt_neox": _gpt_neox, "phi": _phi, "bert": _bert, "distilbert": _distilbert,
}  # fmt: skip
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_FAMILY = {
    **dict.fromkeys(_LIKE_LLAMA, "llama"),
    **{kind: kind for kind in _LAYERS if kind != "llama"},
    "falcon": "bloom",  # the same names
    "roberta": "bert",
}
# Of an encoder for masked tokens: the linear before its head, and the head.
_ENCODERS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.decoder"),
    "roberta": ("lm_head.dense", "lm_head.decoder"),
    "distilbert": ("vocab_transform", "vocab_projector"),
}


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is given and not null."""
    return next((int(config[name]) for name in names if config.get(name) is not None), None)
