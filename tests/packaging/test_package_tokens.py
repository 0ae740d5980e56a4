"""Special tokens of a package are those that `run` has, with a tokenizer of any set-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import command
from support.edge_tools import fptq_run, opened
from support.wider_tokenizer import UNKNOWN, wider_tokenizer

from fptq_onnx.generation.language_model import LanguageModel

pytestmark = pytest.mark.process

SETTINGS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "BOS": ({}, [1]),
    "none, though config.json names one": ({"post_processor": None}, []),
    "two ids": ({"prefix": ["</s>", "<s>"]}, [2, 1]),
    "BOS by its class": (
        {"post_processor": None, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
        [1],
    ),
}


# So that config.json says how large the KV cache is.
SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}


def package(
    custom: Path, place: Path, kind: str, settings: dict[str, Any], ends: list[int]
) -> tuple[Path, Path]:
    """The converted model with these settings and further end tokens, and the package of it."""
    settings = dict(settings)
    changed = {key: settings.pop(key) for key in ("post_processor", "prefix") if key in settings}
    folder = wider_tokenizer(custom, place / "model", **settings)
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if "prefix" in changed:
        post, before = stored["post_processor"], changed["prefix"]
        pieces = [{"SpecialToken": {"id": text, "type_id": 0}} for text in before]
        post["single"] = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
        ids = {token["content"]: token["id"] for token in stored["added_tokens"]}
        post["special_tokens"] = {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in before
        }
    elif changed:
        stored["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    config = {**SIZES, "bos_token_id": 1, "eos_token_id": 9}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    generation = {"eos_token_id": ends}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    output = place / ("story.tar.gz" if kind == "edge" else "package")
    done = command("package", folder, "--for", kind, "-o", output)
    assert done.returncode == 0, done.stderr
    return folder, opened(output, place / "opened") if kind == "edge" else output


@pytest.mark.parametrize("name", SETTINGS)
def test_the_prompt_of_the_edge_package_is_that_of_run(
    custom: Path, runner: Path, tmp_path: Path, name: str
) -> None:
    settings, prefix = SETTINGS[name]
    folder, made = package(custom, tmp_path / "a", "edge", settings, [])
    prompt, _ = (made / "model" / "smoke_tokens.txt").read_text().splitlines()
    ids = tuple(int(word) for word in prompt.split())
    assert ids == (*prefix, 432, 445, 261, 406)
    assert ids == LanguageModel.open(folder, threads=1).encode("Once upon a time")
    options = ("Once upon a time", "--ids", "--threads", 1, "--max-tokens", 12)
    text = [int(word) for word in command("run", folder, *options).stdout.split()]
    # One of its tokens is named as an end by generation_config.json alone.
    folder, made = package(custom, tmp_path / "b", "edge", settings, [text[5], 9])
    shorter = [int(word) for word in command("run", folder, *options).stdout.split()]
    theirs, _ = fptq_run(runner, made / "model", "--tokens", 12, *ids)
    assert theirs == shorter == text[: text.index(text[5])]
    readme = (made / "README.md").read_text("utf-8")
    begins = f"begin with {' '.join(map(str, prefix))}," in readme
    assert begins == bool(prefix)


def test_the_runner_names_a_token_that_the_model_has_not(
    custom: Path, runner: Path, tmp_path: Path
) -> None:
    _, made = package(custom, tmp_path, "edge", {}, [16, 9])
    assert "\nend 2 9 16\n" in (made / "model" / "decoder.txt").read_text("utf-8")
    tokens, told = fptq_run(runner, made / "model", 1, 2048, code=2)
    assert not tokens
    assert f"{UNKNOWN}, though the tokenizer has it: take it out of the text" in told
    _, told = fptq_run(runner, made / "model", 1, 2049, code=2)
    assert "the token 2049 is beyond the model's 2048 tokens: use the model's own tokenizer" in told


def test_onnxruntime_genai_gets_every_end_and_the_beginning(custom: Path, tmp_path: Path) -> None:
    _, made = package(custom, tmp_path, "genai", {"prefix": ["</s>", "<s>"]}, [16, 9])
    config = json.loads((made / "genai_config.json").read_text("utf-8"))
    assert sorted(config["model"]["eos_token_id"]) == [2, 9, 16]
    assert "prefix = [2, 1]" in (made / "README.md").read_text("utf-8")


def test_chat_templates_of_a_folder_come_along(custom: Path, tmp_path: Path) -> None:
    folder = wider_tokenizer(custom, tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("t", "utf-8")
    (folder / "chat_template.jinja").write_text("d", "utf-8")
    assert command("package", folder, "--for", "triton", "-o", tmp_path / "t").returncode == 0
    text = (tmp_path / "t" / "additional_chat_templates" / "tool_use.jinja").read_text("utf-8")
    assert text == "t"
