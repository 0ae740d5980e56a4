"""What the files beside a model say of it: special token ids and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.model_choice import find_model_file
from fptq_onnx.side_json import read_config

__all__ = [
    "SpecialIds",
    "architecture_of",
    "find_model_file",
    "is_masked_model",
    "read_config",
    "read_special_ids",
]

# tokenizer_config.json writes "no limit" as about 1e30.
_ABSURD_LENGTH = 1 << 30


@dataclass(frozen=True)
class SpecialIds:
    """What the configuration files beside a model say of its tokens.

    Attributes:
        bos: id put in front of every document, None if there is none.
        eos: ids that end generation, possibly several, possibly none.
        vocab_size: number of ids the model knows.
        context_length: longest sequence the model was made for, in tokens.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    vocab_size: int | None = None
    context_length: int | None = None


def architecture_of(config: Mapping[str, Any]) -> str:
    """The torch class that a config.json names; "" where it names none."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) else ""


def is_masked_model(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an encoder that predicts masked tokens."""
    return architecture_of(config).endswith("ForMaskedLM")


def read_special_ids(folder: Path) -> SpecialIds:
    """Special ids and sizes from the files beside a model.

    Each value is taken from the first file that has it, in this order: genai_config.json (written
    for running the model), config.json, generation_config.json, tokenizer_config.json (which names
    tokens, looked up in tokenizer.json, and whose lengths are often placeholders).

    Raises:
        FptqError: one of the files is there but is not a JSON object.
    """
    genai = read_config(folder, "genai_config.json").get("model")
    config = read_config(folder, "config.json")
    nested = config.get("text_config")
    generation = read_config(folder, "generation_config.json")
    tokenizer_config = read_config(folder, "tokenizer_config.json")
    sources = [source for source in (genai, config, nested, generation) if isinstance(source, dict)]
    named = _ids_of_named_tokens(folder, tokenizer_config)
    lengths = ("context_length", "max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    vocab = _first_ids(sources, "vocab_size")
    context = [*_first_ids(sources, *lengths), *_as_ids(tokenizer_config.get("model_max_length"))]
    context = [length for length in context if 0 < length < _ABSURD_LENGTH]
    bos = _first_ids([*sources, named], "bos_token_id")
    return SpecialIds(
        bos=bos[0] if bos else None,
        eos=_first_ids([*sources, named], "eos_token_id"),
        vocab_size=vocab[0] if vocab else None,
        context_length=context[0] if context else None,
    )


def _first_ids(sources: list[dict[str, Any]], *keys: str) -> tuple[int, ...]:
    for source in sources:
        for key in keys:
            if ids := _as_ids(source.get(key)):
                return ids
    return ()


def _as_ids(value: object) -> tuple[int, ...]:
    """An id, or a list of them, as a tuple; anything else (null, text) as ()."""
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def _ids_of_named_tokens(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """{"bos_token_id": ..., "eos_token_id": ...} for tokens that are only named."""
    added = read_config(folder, "tokenizer.json").get("added_tokens") if tokenizer_config else None
    ids = {
        token["content"]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token
    }
    found = {}
    for key in ("bos_token", "eos_token"):
        value = tokenizer_config.get(key)
        tokens = value if isinstance(value, list) else [value]
        contents = [token.get("content") if isinstance(token, dict) else token for token in tokens]
        found[f"{key}_id"] = [ids[one] for one in contents if isinstance(one, str) and one in ids]
    return found
