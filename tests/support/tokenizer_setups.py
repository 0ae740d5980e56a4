"""Tokenizer folders as published families set them up, all of one small vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from conversations import chat_tokenizer
from tokenizers import normalizers, pre_tokenizers, processors

TEXTS = ("Once upon a time", "", " <s>Hello </s> there", "[gMASK]<sop> A dog<tool_call>!")

_BYTES = processors.ByteLevel(trim_offsets=False)
_POST = {"bos": "<s>", "eos": "</s>", "gmask": "[gMASK]", "sop": "<sop>", "cls": "[CLS]",
         "sep": "<sep>"}  # fmt: skip


def _around(before: str = "", after: str = "") -> Callable[[tokenizers.Tokenizer], None]:
    """A post-processor with these of _POST before and after a text."""

    def set_processor(tokenizer: tokenizers.Tokenizer) -> None:
        texts = [_POST[name] for name in (*before.split(), *after.split())]
        single = [f"{_POST[name]}:0" for name in before.split()] + ["$A:0"]
        single += [f"{_POST[name]}:0" for name in after.split()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, "$B:1"],
            special_tokens=[(text, tokenizer.token_to_id(text)) for text in dict.fromkeys(texts)],
        )

    return set_processor


def _bytes_and_bos(tokenizer: tokenizers.Tokenizer) -> None:
    _around("bos")(tokenizer)
    tokenizer.post_processor = processors.Sequence([_BYTES, tokenizer.post_processor])


def _bytes_alone(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.post_processor = _BYTES


def _nothing(tokenizer: tokenizers.Tokenizer) -> None:
    """No post-processor: it cannot be taken away, but the saved file can be without one."""


def _bert(tokenizer: tokenizers.Tokenizer) -> None:
    _around("cls", "sep")(tokenizer)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)


def _roberta(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 1), add_prefix_space=False
    )


def _prefix_space(tokenizer: tokenizers.Tokenizer) -> None:
    _bytes_alone(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


_ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
_FAST = "PreTrainedTokenizerFast"
_TOKEN = {"lstrip": True, "rstrip": False, "normalized": False, "special": False,
          "single_word": False}  # fmt: skip

# Name: what changes tokenizer.json, tokenizer_config.json (None for none), other files.
SETUPS: dict[
    str, tuple[Callable[[tokenizers.Tokenizer], None], dict[str, Any] | None, dict[str, Any]]
] = {
    "qwen2, bos in config": (
        _bytes_alone,
        {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
         "add_bos_token": False},
        {"config.json": {"model_type": "qwen2", "bos_token_id": 1, "eos_token_id": 2}},
    ),
    "gpt2, bos in config": (
        _bytes_alone,
        {"tokenizer_class": "GPT2Tokenizer", **_ENDS, "unk_token": "<unk>"},
        {"config.json": {"model_type": "gpt2", "bos_token_id": 1, "eos_token_id": 1}},
    ),
    "gpt2, add_bos_token without effect": (
        _bytes_alone, {"tokenizer_class": "GPT2Tokenizer", **_ENDS, "add_bos_token": True}, {},
    ),
    "pythia, its class takes BOS away": (
        _around("bos"), {"tokenizer_class": "GPTNeoXTokenizer", **_ENDS}, {},
    ),
    "pythia, add_bos_token": (
        _bytes_alone,
        {"tokenizer_class": "GPTNeoXTokenizerFast", **_ENDS, "add_bos_token": True}, {},
    ),
    "llama2, no post-processor": (
        _nothing, {"tokenizer_class": "LlamaTokenizer", **_ENDS, "add_bos_token": True}, {},
    ),
    "llama2, tokens of the class": (_nothing, {"tokenizer_class": "LlamaTokenizerFast"}, {}),
    "llama2, no BOS with a post-processor": (
        _around("bos"), {"tokenizer_class": "LlamaTokenizer", **_ENDS, "add_bos_token": False}, {},
    ),
    "llama2, BOS and EOS": (
        _around("bos"), {"tokenizer_class": "LlamaTokenizer", **_ENDS, "add_eos_token": True}, {},
    ),
    "llama2, tokens in special_tokens_map": (
        _nothing,
        {"tokenizer_class": "LlamaTokenizer"},
        {"special_tokens_map.json": {"bos_token": {"content": "[CLS]", "lstrip": False},
                                     "eos_token": "<sep>"}},
    ),
    "llama2, special_tokens_map passed over": (
        _nothing,
        {"tokenizer_class": "LlamaTokenizer", **_ENDS, "added_tokens_decoder": {}},
        {"special_tokens_map.json": {"bos_token": "[CLS]"}},
    ),
    "llama3": (_bytes_and_bos, {"tokenizer_class": _FAST, **_ENDS}, {}),
    "llama3, add_bos_token false without effect": (
        _bytes_and_bos, {"tokenizer_class": _FAST, **_ENDS, "add_bos_token": False}, {},
    ),
    "gemma": (_bytes_alone, {"tokenizer_class": "GemmaTokenizer", **_ENDS}, {}),
    "cohere, BOS and EOS": (
        _around("bos"),
        {"tokenizer_class": "CohereTokenizer", **_ENDS, "add_eos_token": True}, {},
    ),
    "glm, two ids before": (
        _around("gmask sop"), {"tokenizer_class": _FAST, "eos_token": "</s>"}, {},
    ),
    "t5, EOS after": (
        _around("", "eos"),
        {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<unk>",
         "extra_ids": 0},
        {},
    ),
    "bert": (
        _bert,
        {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "<sep>",
         "unk_token": "<unk>", "pad_token": "<unk>", "mask_token": "<unk>"},
        {},
    ),
    "roberta": (
        _roberta,
        {"tokenizer_class": "RobertaTokenizer", "pad_token": "<unk>", "mask_token": "<unk>"}, {},
    ),
    "no settings, a llama": (_nothing, None, {"config.json": {"model_type": "llama"}}),
    "no settings, a qwen3": (
        _bytes_alone, None, {"config.json": {"model_type": "qwen3", "bos_token_id": 1}},
    ),
    "a space before, taken away": (_prefix_space, {"tokenizer_class": _FAST}, {}),
    "a space before": (
        _prefix_space, {"tokenizer_class": _FAST, "add_prefix_space": True}, {},
    ),
    "special tokens are text": (
        _around("bos"), {"tokenizer_class": _FAST, **_ENDS, "split_special_tokens": True}, {},
    ),
    "tokens added by the settings": (
        _around("bos"),
        {"tokenizer_class": _FAST, **_ENDS,
         "added_tokens_decoder": {"2094": {"content": "upon", **_TOKEN},
                                  "2095": {"content": "og<tool", **_TOKEN}}},
        {},
    ),
    "a word of the vocabulary as special token": (
        _bytes_alone,
        {"tokenizer_class": _FAST, "eos_token": "Hello", "additional_special_tokens": ["upon"]}, {},
    ),
}  # fmt: skip


def setup_folder(folder: Path, name: str) -> Path:
    """A folder with tokenizer.json and the files of a set-up."""
    change, config, others = SETUPS[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = chat_tokenizer()
    change(tokenizer)
    stored = json.loads(tokenizer.to_str())
    if change is _nothing:
        stored["post_processor"] = None
    files = {"tokenizer.json": stored, **others}
    if config is not None:
        files["tokenizer_config.json"] = config
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), "utf-8")
    return folder
