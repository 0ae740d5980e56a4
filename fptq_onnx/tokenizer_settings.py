"""What a folder says of its tokenizer beside tokenizer.json, read as transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers, processors

from fptq_onnx.side_json import read_config
from fptq_onnx.tokenizer_classes import TokenizerClass, tokenizer_class

_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_FURTHER = "additional_special_tokens"


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of one folder.

    Attributes:
        config: tokenizer_config.json; where that lists no added tokens, special_tokens_map.json
            goes before it.
        kind: what the tokenizer's class brings.
    """

    config: Mapping[str, Any]
    kind: TokenizerClass

    @classmethod
    def read(cls, folder: Path) -> TokenizerSettings:
        """The settings of a folder; a folder without files of settings has none.

        Raises:
            FptqError: a file is there but is not a JSON object.
        """
        config = read_config(folder, "tokenizer_config.json")
        model = read_config(folder, "config.json")
        if "added_tokens_decoder" not in config:
            config = {**config, **read_config(folder, "special_tokens_map.json")}
        named = config.get("tokenizer_class") or model.get("tokenizer_class")
        return cls(config, tokenizer_class(named, model.get("model_type")))

    def token_texts(self) -> dict[str, str | list[str]]:
        """Texts of the special tokens by their names, as a chat template may name them.

        The names are bos_token, eos_token and so on, those that the model's own tokenizer adds
        (image_token), and additional_special_tokens, a list. A name without a token is left out.
        """
        named: dict[str, Any] = dict(self.kind.tokens)
        own = {key: value for key, value in self.config.items() if key.endswith("_token")}
        named.update((key, value) for key, value in own.items() if not isinstance(value, bool))
        further = self.config.get(_FURTHER)
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            extra = self.config.get(key)
            if isinstance(extra, dict):
                named.update(extra)
            elif isinstance(extra, list):
                further = further or extra
        texts: dict[str, str | list[str]] = {}
        for name, value in named.items():
            if text := _text(value):
                texts[name] = text
        listed = further if isinstance(further, list) else []
        if several := [text for one in listed if (text := _text(one))]:
            texts[_FURTHER] = several
        return texts

    def texts_of(self, name: str) -> list[str]:
        """Texts of what is named as a token such as eos_token: one, none, or a list of them."""
        value = self.config.get(name, self.kind.tokens.get(name))
        several = value if isinstance(value, list) else [value]
        return [text for one in several if (text := _text(one))]

    def apply(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Change a tokenizer as transformers does when it loads one.

        Added tokens that tokenizer_config.json lists are added; whether texts get BOS and EOS is
        decided by the classes that do so; and special tokens in a text are ids, unless
        split_special_tokens says otherwise.
        """
        texts = self.token_texts()
        missing = {
            name
            for name, text in texts.items()
            if isinstance(text, str) and tokenizer.token_to_id(text) is None
        }
        self._add_tokens(tokenizer)
        self._set_prefix_space(tokenizer)
        # Where a class's own BOS or EOS is no token here, the class cannot be the right one; and
        # transformers 5, which leaves its mark, writes the post-processor that it means.
        foreign = missing & {"bos_token", "eos_token"} - {*self.config}
        if self.kind.ends is not None and not foreign and "backend" not in self.config:
            self._put_ends(tokenizer, self.kind.ends)
        tokenizer.encode_special_tokens = bool(self.config.get("split_special_tokens"))

    def _add_tokens(self, tokenizer: tokenizers.Tokenizer) -> None:
        listed = self.config.get("added_tokens_decoder")
        present = tokenizer.get_added_tokens_decoder().values()
        contents, forms = {token.content for token in present}, {repr(token) for token in present}
        special = self._special_texts()
        added = {}
        for key, value in (listed if isinstance(listed, dict) else {}).items():
            token = _added_token(value)
            if token is None or not key.isdecimal() or repr(token) in forms:
                continue
            token.special = token.special or token.content in special
            added[int(key)] = token
        contents.update(token.content for token in added.values())
        # Special tokens that nobody lists get ids as well; new ones, where the vocabulary has none.
        unlisted = dict.fromkeys(text for text in special if text not in contents)
        tokenizer.add_tokens(
            [
                *(added[key] for key in sorted(added)),
                *(tokenizers.AddedToken(text, special=True) for text in unlisted),
            ]
        )

    def _special_texts(self) -> list[str]:
        texts = self.token_texts()
        ordered = {name: texts[name] for name in _NAMED if name in texts}
        several = [[one] if isinstance(one, str) else one for one in {**ordered, **texts}.values()]
        return [text for one in several for text in one]

    def _set_prefix_space(self, tokenizer: tokenizers.Tokenizer) -> None:
        if not self.kind.prefix_space or tokenizer.pre_tokenizer is None:
            return
        wanted = bool(self.config.get("add_prefix_space", False))
        state = json.loads(tokenizer.pre_tokenizer.__getstate__())
        if state.get("add_prefix_space", wanted) == wanted:
            return
        make = getattr(pre_tokenizers, state.pop("type"))
        tokenizer.pre_tokenizer = make(**{**state, "add_prefix_space": wanted})

    def _put_ends(self, tokenizer: tokenizers.Tokenizer, default: tuple[bool, bool]) -> None:
        texts = self.token_texts()
        wanted: list[tuple[str, int] | None] = []
        for name, without in zip(("bos_token", "eos_token"), default, strict=True):
            text = texts.get(name)
            number = tokenizer.token_to_id(text) if isinstance(text, str) else None
            add = bool(self.config.get(f"add_{name}", without))
            wanted.append((str(text), number) if add and number is not None else None)
        bos, eos = wanted
        single = [f"{bos[0]}:0"] if bos else []
        single += ["$A:0"] + ([f"{eos[0]}:0"] if eos else [])
        second = [piece[:-1] + "1" for piece in single]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(piece.replace("$A", "$B") for piece in second)],
            special_tokens=[one for one in wanted if one is not None],
        )


def _text(value: object) -> str | None:
    """The text of a token, which may be written as an object; None for no token."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _added_token(value: object) -> tokenizers.AddedToken | None:
    text = _text(value) if isinstance(value, dict) else None
    if text is None:
        return None
    assert isinstance(value, dict)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    given = {flag: value[flag] for flag in flags if isinstance(value.get(flag), bool)}
    return tokenizers.AddedToken(text, **given)
