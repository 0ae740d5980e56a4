"""Ids of texts and conversations are those of transformers, template by template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conversations import CONVERSATIONS, TEMPLATES, chat_folder
from tokenizer_setups import SETUPS, TEXTS, setup_folder
from transformers_ids import REFUSED, STORED, FixedDate, chat_ids, text_ids

from fptq_onnx.errors import FptqError
from fptq_onnx.generation import chat_template
from fptq_onnx.generation.chat_template import load_chat_template
from fptq_onnx.text_tokenizer import TextTokenizer

_STORED: dict[str, dict[str, dict[str, Any]]] = json.loads(STORED.read_text("utf-8"))
_NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
# The template that shows what it is given is not asked to keep a text.
_READ_BY_PEOPLE = [name for name in _NAMES if name != "options"]


def our_chat_ids(folder: Path, template: str) -> dict[str, list[int] | str]:
    """As `chat_ids`; contents are texts for every template."""
    chat_folder(folder, template)
    loaded, texts = load_chat_template(folder), TextTokenizer.open(folder, None)
    assert loaded is not None
    ids: dict[str, list[int] | str] = {}
    for name, (messages, variables) in CONVERSATIONS.items():
        try:
            ids[name] = texts.ids(loaded.render(messages, **variables))
        except FptqError:
            ids[name] = REFUSED
    return ids


def our_text_ids(folder: Path, setup: str) -> dict[str, list[int]]:
    texts = TextTokenizer.open(setup_folder(folder, setup), None)
    return {text: texts.encode(text) for text in TEXTS}


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template.datetime, "datetime", FixedDate)


def _ask_transformers() -> None:
    version = pytest.importorskip("transformers").__version__
    if not version.startswith("4."):
        pytest.skip("transformers 5 leaves add_bos_token and contents that are null unread")


def test_there_are_thirty_templates_and_ten_setups() -> None:
    assert len(_NAMES) >= 30 and len(SETUPS) >= 10
    assert set(_STORED["templates"]) == set(_NAMES)
    assert set(_STORED["setups"]) == set(SETUPS)
    answers = [ids for entry in _STORED["templates"].values() for ids in entry.values()]
    assert 20 < sum(ids == REFUSED for ids in answers) < len(answers) / 4


@pytest.mark.parametrize("name", _NAMES)
def test_a_template_gives_the_ids_of_transformers(tmp_path: Path, name: str) -> None:
    assert our_chat_ids(tmp_path, name) == _STORED["templates"][name]


@pytest.mark.parametrize("name", sorted(SETUPS))
def test_a_setup_gives_the_ids_of_transformers(tmp_path: Path, name: str) -> None:
    assert our_text_ids(tmp_path, name) == _STORED["setups"][name]


@pytest.mark.parametrize("name", _NAMES)
def test_a_template_gives_the_ids_of_the_transformers_here(tmp_path: Path, name: str) -> None:
    _ask_transformers()
    assert our_chat_ids(tmp_path / "a", name) == chat_ids(tmp_path / "b", name)


@pytest.mark.parametrize("name", sorted(SETUPS))
def test_a_setup_gives_the_ids_of_the_transformers_here(tmp_path: Path, name: str) -> None:
    _ask_transformers()
    assert our_text_ids(tmp_path / "a", name) == text_ids(tmp_path / "b", name)


@pytest.mark.parametrize("name", _READ_BY_PEOPLE)
@pytest.mark.parametrize("parts", [False, True], ids=["text", "parts"])
def test_a_template_keeps_the_text_in_either_form(tmp_path: Path, name: str, parts: bool) -> None:
    loaded = load_chat_template(chat_folder(tmp_path, name))
    assert loaded is not None
    content: Any = "Where is Lund?"
    if parts:
        content = [{"type": "text", "text": content}]
    text = loaded.render([{"role": "user", "content": content}])
    assert "Where is Lund?" in " ".join(text.split())
    assert "'type'" not in text and '"type"' not in text
