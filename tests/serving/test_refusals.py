"""Each mistake in a request gets its status and one of OpenAI's error objects."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest
from command_line import MODEL
from http_serving import JSON, NAME, Server, completion, in_thread, raw

from fptq_onnx.generation.language_model import LanguageModel


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with in_thread(LanguageModel.open(MODEL, threads=1), max_body=4000) as found:
        yield found
        text = found.complete(max_tokens=12).text
        assert text == ", there was a little girl named Lily. She loved to"


@pytest.mark.parametrize(
    ("fields", "param", "saying"),
    [
        ({"prompt": None}, "prompt", "must be one text"),
        ({"prompt": ["a", "b"]}, "prompt", "must be one text"),
        ({"prompt": []}, "prompt", "must be one text"),
        ({"prompt": [True]}, "prompt", "must be one text"),
        ({"prompt": [1, 999999]}, "prompt", "token ids must be from 0 to"),
        ({"prompt": [-1]}, "prompt", "token ids must be from 0 to"),
        ({"n": 2}, "n", "n can only be 1 here"),
        ({"n": True}, "n", "n can only be 1 here"),
        ({"best_of": 3}, "best_of", "can only be 1"),
        ({"echo": True}, "echo", "can only be false"),
        ({"suffix": "x"}, "suffix", 'can only be ""'),
        ({"logprobs": 0}, "logprobs", "can only be false"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "can only be {}"),
        ({"presence_penalty": 0.5}, "presence_penalty", "can only be 0"),
        ({"messages": []}, "messages", "not supported"),
        ({"max_token": 5}, "max_token", "the field 'max_token' is not supported"),
        ({"max_tokens": -1}, "max_tokens", "must be from 0 to 9223372036854775807"),
        ({"max_tokens": 1.5}, "max_tokens", "must be an integer"),
        ({"max_tokens": "9"}, "max_tokens", "must be an integer"),
        ({"max_tokens": 10**30}, "max_tokens", "must be from 0 to 9223372036854775807"),
        ({"temperature": -1}, None, "from 0 to 1000"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": True}, "temperature", "must be a number"),
        ({"temperature": 1e300}, "temperature", "must be a number"),
        ({"temperature": 101}, "temperature", "at most 100"),
        ({"top_p": -0.1}, None, "top-p"),
        ({"top_p": 1.1}, None, "top-p"),
        ({"top_k": -2}, "top_k", "must be from -1 to 9223372036854775807"),
        ({"repetition_penalty": 0}, None, "repetition penalty"),
        ({"seed": 1.5}, "seed", "must be an integer"),
        ({"seed": True}, "seed", "must be an integer"),
        ({"seed": 2**64}, "seed", "from -9223372036854775808 to 9223372036854775807"),
        ({"seed": -(2**63) - 1}, "seed", "from -9223372036854775808 to 9223372036854775807"),
        ({"stop": 5}, "stop", "must be a text"),
        ({"stop": ["x"] * 17}, "stop", "16 at most"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {}}, "stream_options", "with stream: true"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage", "true or"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}},
         "stream_options.continuous_usage_stats", "not supported"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "include_obfuscation", "can only be false"),
        ({"tools": [{"type": "function"}]}, "tools", "can only be []"),
        ({"response_format": {"type": "json_object"}}, "response_format", "can only be"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "not supported"),
        ({"model": None}, "model", "must be a name"),
        ({"model": 5}, "model", "must be a name"),
    ],
)  # fmt: skip
def test_fields(server: Server, fields: dict[str, object], param: str | None, saying: str) -> None:
    given = {"prompt": "Once", **fields}
    answer = server.complete(**given)
    assert answer.status == 400, answer.body
    assert (answer.error["param"], answer.error["type"]) == (param, "invalid_request_error")
    assert saying in answer.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "echo": False, "logprobs": None, "presence_penalty": 0.0, "user": "me"},
        {"seed": -(2**63), "temperature": 2},
        {"seed": 2**63 - 1, "temperature": 2},
        {"stop": "never comes", "top_k": 5, "repetition_penalty": 1.1, "best_of": 1},
        {"max_tokens": 2**63 - 1},
        {"tools": [], "response_format": {"type": "text"}, "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stop": None, "stream": None, "temperature": None, "seed": None, "max_tokens": None},
        {"top_p": 0}, {"top_p": 0, "temperature": 2}, {"top_p": 1, "temperature": 0},
        {"temperature": 1e-9}, {"temperature": 2.0, "max_tokens": 1},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "n": 1},
        {"stop": ""}, {"stop": []}, {"stop": [""]}, {"stop": ["", "x"]}, {"top_k": -1},
        {name: None for name in (
            "n", "best_of", "echo", "suffix", "logit_bias", "presence_penalty", "user", "top_p",
            "frequency_penalty", "logprobs", "stream_options", "response_format", "tools",
            "tool_choice", "parallel_tool_calls", "top_k", "metadata", "store", "modalities",
        )},
    ],
)  # fmt: skip
def test_fields_that_are_fine(server: Server, fields: dict[str, object]) -> None:
    answer = server.complete("Once", **fields)
    assert answer.status == 200, answer.body


def test_top_p_of_0_is_the_most_likely_token(server: Server) -> None:
    greedy = server.complete(max_tokens=12, temperature=0).text
    for seed in range(3):
        fields = {"temperature": 2, "top_p": 0, "seed": seed}
        assert server.complete(max_tokens=12, **fields).text == greedy
    assert server.complete(max_tokens=12, temperature=1e-9).text == greedy


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_are_asked_for(server: Server, stream: bool) -> None:
    """The legacy API takes 0: the prompt is counted, and nothing is written."""
    if stream:
        answer = server.complete(max_tokens=0, stream=True)
        assert answer.status == 200
        assert b'"finish_reason":"length"' in answer.body.replace(b": ", b":")
        return
    found = server.complete(max_tokens=0).json
    assert (found["choices"][0]["text"], found["choices"][0]["finish_reason"]) == ("", "length")
    assert found["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "saying"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "x",}', "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"temperature": NaN}', "NaN is no number of JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "not UTF-8"),
        (b"[" * 3900, "nested too deeply"),
        (b'{"seed": ' + b"9" * 3900 + b"}", "must be a name"),
        (b'{"seed": ' + b"9" * 4400 + b"}", "bytes"),
    ],
)  # fmt: skip
def test_bodies(server: Server, body: bytes, saying: str) -> None:
    answer = server.ask("POST", "/v1/completions", body, **JSON)
    assert answer.status == (413 if saying == "bytes" else 400)
    assert saying in answer.error["message"]


def test_routes_methods_and_content_types(server: Server) -> None:
    for method, path, status in (
        ("GET", "/", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405), ("GET", "/v1/models/other", 404),
    ):  # fmt: skip
        answer = server.ask(method, path)
        assert answer.status == status
        assert answer.error["message"]
    assert "POST" in server.ask("GET", "/v1/completions").headers["allow"]
    # A page in a browser could send these without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = server.ask("POST", "/v1/completions", completion(), Content_Type=kind)
        assert (answer.status, "Content-Type" in answer.error["message"]) == (415, True)
    kind = "Application/JSON; charset=utf-8"
    assert server.ask("POST", "/v1/completions", completion(), Content_Type=kind).status == 200


def test_a_body_too_large(server: Server) -> None:
    large = completion("x" * 5000)
    answer = server.ask("POST", "/v1/completions", large, **JSON)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    for rest in (
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk,  # its size is not said beforehand
        b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",  # asks before it sends
        b"Content-Length: 9999999\r\n\r\n" + b"x" * 9999999,
    ):
        started = time.monotonic()
        assert raw(server.port, head + rest).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 5  # the connection is closed, not kept
    with contextlib.suppress(OSError):  # not read to its end: the client may not see the answer
        endless = b"Content-Length: 99999999999\r\n\r\n" + b"x" * (17 << 20)
        assert raw(server.port, head + endless).startswith(b"HTTP/1.1 413 ")
    exact = completion("x")
    exact += b" " * (4000 - len(exact))
    assert server.ask("POST", "/v1/completions", exact, **JSON).status == 200
    assert server.ask("POST", "/v1/completions", exact + b" ", **JSON).status == 413


def test_bytes_that_are_not_http(server: Server) -> None:
    assert raw(server.port, b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_prompt_that_fills_the_context(server: Server) -> None:
    for count, status in ((256, 400), (255, 200)):
        answer = server.complete([1] + [300] * (count - 1), max_tokens=9, ignore_eos=True)
        assert answer.status == status, answer.body
    assert answer.json["usage"]["completion_tokens"] == 1
    error = server.complete([300] * 256).error
    assert error["code"] == "context_length_exceeded"
    assert "256 tokens, but the model's context is 256" in error["message"]


def test_chat_without_a_template(server: Server) -> None:
    def chat(messages: object, **fields: object) -> tuple[int, dict[str, object]]:
        body = json.dumps({"model": NAME, "messages": messages, **fields}).encode()
        answer = server.ask("POST", "/v1/chat/completions", body, **JSON)
        return answer.status, answer.error

    user = {"role": "user", "content": "Hi"}
    status, error = chat([user])
    assert (status, error["code"]) == (400, "no_chat_template")
    for messages, param in (
        ([], "messages"),
        ("Hi", "messages"),
        ([user, "Hi"], "messages[1]"),
        ([{"role": 5, "content": "x"}], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": [], "text": "a"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}],
            "messages[0].content",
        ),
        ([user, {"role": "tool", "content": "5", "tool_call_id": "a"}], "messages[1].role"),
        ([user, {"role": "function", "content": "5", "name": "f"}], "messages[1].role"),
        ([user, {"role": "User", "content": "5"}], "messages[1].role"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}],
            "messages[0].tool_calls",
        ),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[0].content"),
        ([{**user, "tool_call_id": "a"}], "messages[0].tool_call_id"),
        ([{**user, "weight": 0}], "messages[0].weight"),
        ([{**user, "name": 5}], "messages[0].name"),
    ):
        status, error = chat(messages)
        assert (status, error["param"]) == (400, param)
    for name, value in (
        ("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}),
        ("logprobs", True), ("audio", {}), ("prompt", "x"),
    ):  # fmt: skip
        status, error = chat([user], **{name: value})
        assert (status, error["param"]) == (400, name)
    status, error = chat([user], max_tokens=5, max_completion_tokens=6)
    assert "contradict" in str(error["message"])
