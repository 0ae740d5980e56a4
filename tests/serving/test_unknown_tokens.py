"""A token of the tokenizer that the model has not: 400, and the token's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL
from http_serving import JSON, NAME, Server, in_thread
from wider_tokenizer import UNKNOWN, wider_tokenizer

from fptq_onnx.generation.language_model import LanguageModel

TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("wider") / "m"
    wider_tokenizer(MODEL, folder, chat_template=TEMPLATE)
    with in_thread(LanguageModel.open(folder, threads=1)) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "fields", "saying"),
    [
        ("/v1/completions", {"prompt": "a <image> b"}, UNKNOWN),
        ("/v1/completions", {"prompt": [1, 2048]}, "2048 is '<image>', which the model has not"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a <image> b"}]},
            UNKNOWN,
        ),
    ],
)
def test_it_is_named(server: Server, path: str, fields: dict[str, Any], saying: str) -> None:
    answer = server.ask("POST", path, json.dumps({"model": NAME, **fields}).encode(), **JSON)
    assert answer.status == 400
    assert saying in answer.error["message"]


def test_other_texts_are_answered(server: Server) -> None:
    assert server.complete("Once", max_tokens=2).status == 200
    # The template goes over parts, and the client gave a text.
    messages = [{"role": "user", "content": "Once upon a time"}]
    body = {"model": NAME, "messages": messages, "max_tokens": 2, "temperature": 0}
    answer = server.ask("POST", "/v1/chat/completions", json.dumps(body).encode(), **JSON)
    assert answer.status == 200
    assert answer.json["usage"]["prompt_tokens"] == 4
