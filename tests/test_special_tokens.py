"""What a folder's files say of special tokens, and what is done with ids a model has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL, command
from wider_tokenizer import UNKNOWN, wider_tokenizer

from fptq_onnx.errors import FptqError
from fptq_onnx.eval_settings import EvalSettings
from fptq_onnx.evaluate_model import evaluate_model
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.model_configs import read_special_ids
from fptq_onnx.tokenizer_settings import TokenizerSettings


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


ADDED = {"added_tokens": [{"id": 7, "content": "<|im_end|>"}, {"id": 8, "content": "</s>"}]}


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [2, 5]}}, (2, 5)),
        ({"config": {"text_config": {"eos_token_id": [3, 4]}, "eos_token_id": 2}}, (2, 3, 4)),
        ({"config": {"thinker_config": {"text_config": {"eos_token_id": 3}}}}, (3,)),
        ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": 0}}, (0,)),
        ({"genai_config": {"model": {"eos_token_id": [1]}}, "config": {"eos_token_id": 4}}, (1, 4)),
        # What a chat's turn ends with, though config.json names the end of a document.
        ({"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, (2, 7)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, (8,)),
        ({"special_tokens_map": {"eos_token": "</s>"}}, (8,)),
        # A word of the vocabulary that is no added token, and the one of the tokenizer's class.
        ({"tokenizer_config": {"eos_token": "end"}}, (1,)),
        ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}}, (8,)),
        ({"tokenizer_config": {"eos_token": "nowhere"}}, ()),
        ({"config": {"eos_token_id": [True, -1, "2"]}}, ()),
    ],
)
def test_every_token_that_is_named_ends_a_text(
    tmp_path: Path, files: dict[str, Any], ends: tuple[int, ...]
) -> None:
    write(tmp_path, tokenizer={**ADDED, "model": {"vocab": {"end": 1}}}, **files)
    assert read_special_ids(tmp_path).eos == ends


def test_a_tokenizer_elsewhere_names_ends_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", config={"eos_token_id": 2, "vocab_size": 9})
    write(tmp_path / "b", generation_config={"eos_token_id": [3]}, config={"vocab_size": 5})
    special = read_special_ids(tmp_path / "a", tmp_path / "b")
    assert (special.eos, special.vocab_size) == ((2, 3), 9)


def test_texts_of_special_tokens(tmp_path: Path) -> None:
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": None,
        "image_token": "<image>",
        "add_bos_token": True,
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
        "extra_special_tokens": {"audio_token": "<audio>"},
    }
    write(tmp_path, tokenizer_config=config, special_tokens_map={"pad_token": {"content": "<p>"}})
    assert TokenizerSettings.read(tmp_path).token_texts() == {
        "bos_token": "<s>",
        "image_token": "<image>",
        "audio_token": "<audio>",
        "pad_token": "<p>",
        "additional_special_tokens": ["<a>", "<b>"],
    }


def test_what_transformers_5_saved_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = wider_tokenizer(
        MODEL, tmp_path / "m", tokenizer_class="LlamaTokenizer", add_eos_token=True
    )
    model = LanguageModel.open(folder, threads=1)
    assert model.encode("Once upon") == (1, 432, 445, 2)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    write(folder, tokenizer_config={**settings, "backend": "tokenizers"})
    assert LanguageModel.open(folder, threads=1).encode("Once upon") == (1, 432, 445)


def test_a_bos_in_config_alone_puts_nothing_before_a_text(tmp_path: Path) -> None:
    folder = wider_tokenizer(MODEL, tmp_path / "m", tokenizer_class="Qwen2Tokenizer")
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    write(folder, tokenizer={**stored, "post_processor": None}, config={"bos_token_id": 1})
    assert LanguageModel.open(folder, threads=1).encode("Once upon") == (432, 445)


def test_an_id_that_the_model_has_not_is_refused_by_name(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = wider_tokenizer(MODEL, tmp_path / "m", chat_template=template)
    model = LanguageModel.open(folder, threads=1)
    assert model.encode("Once upon") == (1, 432, 445)
    with pytest.raises(FptqError) as refused:
        model.encode("Once <image> upon")
    assert str(refused.value).startswith(UNKNOWN) and "take it out of the text" in str(
        refused.value
    )
    with pytest.raises(FptqError) as refused:
        model.encode_chat([{"role": "user", "content": "Once <image> upon"}])
    assert str(refused.value).startswith(UNKNOWN)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_evaluation_refuses_it_too(tmp_path: Path, suffix: str) -> None:
    folder, data = wider_tokenizer(MODEL, tmp_path / "m"), tmp_path / f"a{suffix}"
    for text, refused in (("Tom had a red ball", False), ("Tom had a <image> ball", True)):
        data.write_text(json.dumps({"text": text}) if suffix == ".jsonl" else text, "utf-8")
        done = command("eval", folder, "--data", data, "--threads", 1)
        assert (UNKNOWN in done.stderr, done.returncode) == (refused, 2 if refused else 0)


def test_an_evaluation_says_what_stands_around_documents(tmp_path: Path) -> None:
    folder = wider_tokenizer(
        MODEL, tmp_path / "m", tokenizer_class="LlamaTokenizer", add_eos_token=True
    )
    data = tmp_path / "a.txt"
    data.write_text("Tom had a red ball\n<|endoftext|>\nHe ran to the park", "utf-8")
    result = evaluate_model(folder, EvalSettings(data), threads=1, quiet=True)
    assert (result.to_dict()["prefix"], result.to_dict()["suffix"]) == ((1,), (2,))
    bare = evaluate_model(folder, EvalSettings(data, bos=False), threads=1, quiet=True)
    assert (bare.prefix, bare.suffix) == ((), ())
    assert result.perplexity is not None and bare.perplexity is not None
    # What is predicted is one token less than there are; BOS and EOS come twice each.
    assert result.perplexity.predictions == bare.perplexity.predictions + 4
