"""The official client gets from the server what `fptq-onnx run` writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from support.command_line import MODEL, command
from support.http_serving import NAME, Server, serving

PROMPTS = [
    "Once upon a time",
    "The little dog ran to the park and",
    "Tim",
    "One day a girl saw a big",
    "Mom said",
    "",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / NAME
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def server(chat_model: Path, starts_processes: None) -> Iterator[Server]:
    with serving("--max-running", 4, model=chat_model) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as found:
        yield found


def complete(client: openai.OpenAI, prompt: str, tokens: int = 40, **options: object) -> str:
    settings: dict[str, object] = {"temperature": 0, "max_tokens": tokens, **options}
    done = client.completions.create(model=NAME, prompt=prompt, **settings)  # type: ignore[call-overload]
    return str(done.choices[0].text)


def streamed(client: openai.OpenAI, prompt: str, tokens: int = 40, **options: object) -> str:
    settings: dict[str, object] = {"temperature": 0, "max_tokens": tokens, **options}
    parts = client.completions.create(  # type: ignore[call-overload]
        model=NAME, prompt=prompt, stream=True, **settings
    )
    return "".join(part.choices[0].text for part in parts)


def test_a_seed_draws_what_run_draws_with_it(client: openai.OpenAI) -> None:
    for seed in (-1, 2**63 - 1):
        options = ("--temperature", 1, "--seed", seed, "--threads", 1)
        done = command("run", MODEL, PROMPTS[0], "--max-tokens", 20, *options)
        assert done.returncode == 0, done.stderr
        drawn = complete(client, PROMPTS[0], 20, temperature=1, seed=seed)
        assert done.stdout == f"{PROMPTS[0]}{drawn}\n"


def test_greedy_text_is_what_run_writes_alone_and_in_a_batch(client: openai.OpenAI) -> None:
    written = {}
    for prompt in PROMPTS:
        done = command("run", MODEL, prompt, "--max-tokens", 40, "--threads", 1)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(prompt) and done.stdout.endswith("\n")
        written[prompt] = done.stdout[len(prompt) : -1]
    for prompt in PROMPTS:
        assert complete(client, prompt) == written[prompt]
    many = PROMPTS * 8  # more than fit: they join and leave as the others go on

    def ask(number: int) -> str:
        prompt, way = many[number], (complete, streamed)[number % 2]
        if number % 5 == 4:  # drawn ones among them
            return way(client, prompt, 10 + number, temperature=1.0, seed=number)
        return way(client, prompt, 40 - number % 3)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(len(many))))
    for number, text in enumerate(texts):
        if number % 5 != 4:
            # Fewer tokens are the beginning of more.
            assert written[many[number]].startswith(text) and (text or not written[many[number]])
            assert text == complete(client, many[number], 40 - number % 3)


def test_a_stream_has_the_text_of_one_answer(client: openai.OpenAI) -> None:
    for options in ({}, {"temperature": 0.9, "seed": 11, "top_p": 0.9}, {"stop": ["Lily", "park"]}):
        whole = complete(client, PROMPTS[0], **options)
        assert streamed(client, PROMPTS[0], **options) == whole
    assert whole == ", there was a little girl named "


def test_the_counts(client: openai.OpenAI) -> None:
    common = {"model": NAME, "prompt": PROMPTS[3], "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(**common)  # type: ignore[call-overload]
    assert whole.usage.completion_tokens == 9
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 9
    assert whole.choices[0].finish_reason == "length"
    *parts, last = client.completions.create(  # type: ignore[call-overload]
        **common, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert [part.usage for part in parts] == [None] * len(parts)
    assert parts[-1].choices[0].finish_reason == "length"
    assert all(part.choices[0].finish_reason is None for part in parts[:-1])


def test_token_ids_as_a_prompt(client: openai.OpenAI, chat_model: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(chat_model / "tokenizer.json"))
    ids = [1, *tokenizer.encode(PROMPTS[1], add_special_tokens=False).ids]
    for prompt in (ids, [ids]):
        done = client.completions.create(model=NAME, prompt=prompt, max_tokens=20, temperature=0)
        assert done.choices[0].text == complete(client, PROMPTS[1], 20)


def test_token_ids_of_an_answer(client: openai.OpenAI, chat_model: Path) -> None:
    written = command("run", chat_model, PROMPTS[1], "--raw", "--ids", "--max-tokens", 20)
    ids = [int(word) for word in written.stdout.split()]
    assert len(ids) == 20
    common = {"model": NAME, "prompt": PROMPTS[1], "max_tokens": 20, "temperature": 0}
    wanted = {"extra_body": {"return_token_ids": True}}
    whole = client.completions.create(**common, **wanted).choices[0]  # type: ignore[call-overload]
    assert whole.token_ids == ids
    assert whole.text == complete(client, PROMPTS[1], 20)
    parts = list(client.completions.create(**common, **wanted, stream=True))  # type: ignore[call-overload]
    assert [token for part in parts for token in part.choices[0].token_ids] == ids
    assert "".join(part.choices[0].text for part in parts) == whole.text
    plain = client.completions.create(**common)  # type: ignore[call-overload]
    assert "token_ids" not in plain.choices[0].model_dump()


def test_the_end_token_is_not_among_the_ids(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=NAME, prompt=PROMPTS[0], max_tokens=250, temperature=0,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    assert done.choices[0].finish_reason == "stop"
    assert 2 not in done.choices[0].token_ids  # type: ignore[attr-defined]
    assert done.usage is not None
    assert done.usage.completion_tokens == len(done.choices[0].token_ids)  # type: ignore[attr-defined]


def test_chat_uses_the_template(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    settings = {"model": NAME, "messages": messages, "temperature": 0}
    done = client.chat.completions.create(**settings, max_completion_tokens=20)  # type: ignore[call-overload]
    assert done.choices[0].message.role == "assistant"
    raw = complete(client, "system:Be kind\nuser:Hi\nassistant:", 20)
    assert done.choices[0].message.content == raw
    assert done.usage.completion_tokens == 20
    parts = list(client.chat.completions.create(**settings, max_tokens=20, stream=True))  # type: ignore[call-overload]
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == raw
    assert parts[-1].choices[0].finish_reason == "length"
    settings["messages"] = [
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
    ]
    again = client.chat.completions.create(**settings, max_tokens=20)  # type: ignore[call-overload]
    assert again.choices[0].message.content == raw


def test_a_chat_without_a_limit_goes_on_as_far_as_the_context(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "Hi"}], temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert done.usage is not None and done.usage.total_tokens == 256
    assert done.choices[0].finish_reason == "length"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"


def test_the_clients_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "dog " * 300)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "x", n=2)
    assert caught.value.param == "n"


def test_metrics_count_what_was_served(server: Server, client: openai.OpenAI) -> None:
    before = server.metric("fptq_generated_tokens_total")
    prompts = server.metric("fptq_prompt_tokens_total")
    complete(client, PROMPTS[0], 7)
    assert server.metric("fptq_generated_tokens_total") == before + 7
    assert server.metric("fptq_prompt_tokens_total") == prompts + 5
    assert server.metric('fptq_http_requests_total{route="/v1/completions",status="200"}') > 0
    assert server.metric("fptq_requests_running") == server.metric("fptq_requests_waiting") == 0
    assert server.metric("fptq_first_token_seconds_count") > 0
    assert json.loads(server.ask("GET", "/health").body) == {"status": "ok"}
