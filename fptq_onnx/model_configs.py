"""What the files beside a model say of it: special token ids and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.model_choice import find_model_file
from fptq_onnx.side_json import read_config
from fptq_onnx.tokenizer_settings import TokenizerSettings

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
# Where the config.json of a model of several parts describes the one that writes text.
_TEXT_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")


@dataclass(frozen=True)
class SpecialIds:
    """What the configuration files beside a model say of its tokens.

    Attributes:
        bos: id that they name as the beginning, None if they name none. It says nothing of what a
            text begins with (Qwen2 and GPT-2 name one that no text gets): `TextTokenizer` does.
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


def read_special_ids(folder: Path, tokenizer_folder: Path | None = None) -> SpecialIds:
    """Special ids and sizes from the files beside a model.

    An id that any of them names as an end ends generation: config.json often names one, and
    generation_config.json or the tokenizer another, with which a chat's answers end. Every other
    value is taken from the first file that has it, in this order: genai_config.json (written for
    running the model), config.json, generation_config.json, tokenizer_config.json (which names
    tokens, looked up in tokenizer.json, and whose lengths are often placeholders).

    Args:
        folder: of the model.
        tokenizer_folder: of the tokenizer, where that is another one; its files come last.

    Raises:
        FptqError: one of the files is there but is not a JSON object.
    """
    folders = [folder, *([] if tokenizer_folder in (None, folder) else [tokenizer_folder])]
    sources: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    lengths_of_tokenizers: list[int] = []
    for one in folders:
        assert one is not None
        genai = read_config(one, "genai_config.json").get("model")
        config = read_config(one, "config.json")
        sources += [genai] if isinstance(genai, dict) else []
        sources += [config, *_text_parts(config), read_config(one, "generation_config.json")]
        settings = TokenizerSettings.read(one)
        named.append(_ids_of_named_tokens(one, settings))
        lengths_of_tokenizers += _as_ids(settings.config.get("model_max_length"))
    lengths = ("context_length", "max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    vocab = _first_ids(sources, "vocab_size")
    context = [*_first_ids(sources, *lengths), *lengths_of_tokenizers]
    context = [length for length in context if 0 < length < _ABSURD_LENGTH]
    bos = _first_ids([*sources, *named], "bos_token_id")
    ends = [end for source in (*sources, *named) for end in _as_ids(source.get("eos_token_id"))]
    return SpecialIds(
        bos=bos[0] if bos else None,
        eos=tuple(dict.fromkeys(ends)),
        vocab_size=vocab[0] if vocab else None,
        context_length=context[0] if context else None,
    )


def _text_parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in _TEXT_PARTS:
        part = config.get(key)
        if isinstance(part, dict):
            yield part
            yield from _text_parts(part)


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


def _ids_of_named_tokens(folder: Path, settings: TokenizerSettings) -> dict[str, Any]:
    """{"bos_token_id": [...], "eos_token_id": [...]} for tokens that are only named."""
    named = {key: settings.texts_of(key) for key in ("bos_token", "eos_token")}
    ids = _token_ids(read_config(folder, "tokenizer.json")) if any(named.values()) else {}
    return {f"{key}_id": [ids[one] for one in texts if one in ids] for key, texts in named.items()}


def _token_ids(tokenizer: dict[str, Any]) -> dict[object, int]:
    """The ids of tokens by their texts, of a tokenizer.json."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[object, int] = {}
    if isinstance(vocabulary, dict):
        ids.update(vocabulary)
    elif isinstance(vocabulary, list):  # Unigram: [piece, score] each
        ids.update((piece[0], place) for place, piece in enumerate(vocabulary) if piece)
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token:
            ids[token["content"]] = token["id"]
    return ids
