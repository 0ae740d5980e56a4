"""Full queues, late answers, clients that leave or do not read: the others are not affected."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.command_line import MODEL
from support.http_serving import JSON, Answered, Server, completion, in_thread, raw, until

from fptq_onnx.generation.engine import Delta, Engine
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.serving import answer

KEY = "sésame"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.open(MODEL, threads=1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second and more for a step: a text of 200 tokens lasts for seconds."""
    step = Engine.step

    def slowed(engine: Engine) -> list[Delta]:
        time.sleep(0.01)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slowed)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as found:
        yield found


def began(server: Server, **fields: object) -> socket.socket:
    """A stream whose first event has come."""
    body = completion(stream=True, max_tokens=200, ignore_eos=True, **fields)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    received = b""
    while b"data: " not in received:
        received += connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 200 ")
    return connection


def counted(server: Server, end: str) -> float:
    return server.metric(f'fptq_generations_total{{end="{end}"}}')


@pytest.mark.usefixtures("slow")
def test_a_full_queue(model: LanguageModel, pool: ThreadPoolExecutor) -> None:
    with in_thread(model, max_running=2, max_waiting=3) as server:
        lone = server.complete(max_tokens=50).text
        asked = [pool.submit(server.complete, max_tokens=50) for _ in range(12)]
        answers = [one.result() for one in asked]
        refused = [one for one in answers if one.status != 200]
        assert [one.status for one in refused] == [429] * 7
        for one in refused:
            assert (one.error["code"], one.error["type"]) == ("queue_full", "rate_limit_error")
            assert 1 <= int(one.headers["retry-after"]) <= 60
        assert [one.text for one in answers if one.status == 200] == [lone] * 5
        assert server.complete(max_tokens=50).text == lone


@pytest.mark.usefixtures("slow")
def test_who_leaves_frees_the_row(model: LanguageModel, pool: ThreadPoolExecutor) -> None:
    with in_thread(model, max_running=2) as server:
        lone = server.complete("The little dog", max_tokens=100).text
        stays = pool.submit(server.complete, "The little dog", max_tokens=100)
        until(lambda: server.metric("fptq_requests_running") == 1)
        leaving = began(server)
        waits = pool.submit(server.complete, "The little dog", max_tokens=100, stream=True)
        until(lambda: server.metric("fptq_requests_waiting") == 1)
        leaving.close()
        until(lambda: counted(server, "client_left") == 1)
        until(lambda: server.metric("fptq_requests_waiting") == 0)
        assert not stays.done()  # the place is of the one who left
        # Whoever waits, or has no stream, may leave as well.
        queued = socket.create_connection(("127.0.0.1", server.port))
        body = completion(max_tokens=200)
        queued.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: server.metric("fptq_requests_waiting") == 1)
        queued.close()
        until(lambda: server.metric("fptq_requests_waiting") == 0)
        assert stays.result().text == waits.result().text == lone
        until(lambda: server.metric("fptq_requests_running") == 0)
        assert counted(server, "client_left") == 2
        left = 'fptq_http_requests_total{route="/v1/completions",status="499"}'
        assert server.metric(left) == 1


@pytest.mark.usefixtures("slow")
def test_the_time_runs_out(model: LanguageModel, pool: ThreadPoolExecutor) -> None:
    with in_thread(model, max_running=1, timeout=0.5) as server:
        stream = pool.submit(server.complete, max_tokens=200, stream=True, ignore_eos=True)
        until(lambda: server.metric("fptq_requests_running") == 1)
        waiting = server.complete(max_tokens=200, ignore_eos=True)
        assert (waiting.status, waiting.error["code"]) == (504, "timeout")
        assert "more than 0.5 s" in waiting.error["message"]
        answered: Answered = stream.result()
        assert answered.status == 200
        *parts, last = answered.events
        assert last["error"]["code"] == "timeout"
        assert 2 < len(parts) < 200
        until(lambda: counted(server, "timeout") == 2)
        assert server.complete(max_tokens=5).status == 200


@pytest.mark.usefixtures("slow")
def test_a_client_that_does_not_read(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "_GRACE", 0.2)
    event = answer._event
    monkeypatch.setattr(answer, "_event", lambda value: event(value) + b":" + b" " * 200_000)
    with in_thread(model, max_running=1, timeout=1) as server:
        stuck = began(server)
        until(lambda: server.metric("fptq_requests_running") == 0)
        assert counted(server, "timeout") + counted(server, "cancelled") == 1
        assert server.complete(max_tokens=5).status == 200
        until(lambda: server.metric("fptq_requests_running") == 0)
        stuck.close()


@pytest.mark.usefixtures("slow")
def test_idle_and_half_sent_connections(model: LanguageModel, pool: ThreadPoolExecutor) -> None:
    with in_thread(model, max_running=2) as server:
        lone = server.complete(max_tokens=50).text
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        for number, connection in enumerate(idle):
            if number % 3 == 1:
                connection.sendall(b"POST /v1/completions HT")
            if number % 3 == 2:
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                    b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
                )
        asked = [pool.submit(server.complete, max_tokens=50) for _ in range(4)]
        assert [one.result().text for one in asked] == [lone] * 4
        assert server.metric("fptq_requests_running") == 0
        for connection in idle:
            connection.close()


def test_a_huge_prompt_keeps_nobody_waiting(model: LanguageModel, pool: ThreadPoolExecutor) -> None:
    with in_thread(model, max_body=2_000_000) as server:
        huge = pool.submit(server.complete, "The dog went to the park. " * 40_000)
        answered = 0
        while not huge.done():
            answered += server.ask("GET", "/health").status == 200
        assert (huge.result().status, answered > 20) == (400, True), answered
        assert huge.result().error["code"] == "context_length_exceeded"


def test_a_body_that_does_not_come(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fptq_onnx.serving.read_body._SECONDS", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with in_thread(model) as server:
        assert raw(server.port, head + b"Content-Length: 5\r\n\r\n{").startswith(b"HTTP/1.1 408 ")


def test_the_key(model: LanguageModel) -> None:
    with in_thread(model, api_key=KEY) as server:
        right = "Bearer " + KEY.encode().decode("latin-1")
        for path, method in (
            ("/v1/models", "GET"), ("/v1/models/tinystories-7m", "GET"),
            ("/v1/completions", "POST"), ("/v1/chat/completions", "POST"),
        ):  # fmt: skip
            for given in (None, "", "Bearer", "Bearer ", "Bearer wrong", right + "x", right[:-1],
                          right.replace("Bearer", "Basic"), KEY):  # fmt: skip
                headers = {} if given is None else {"Authorization": given}
                refused = server.ask(method, path, b"{}", **headers, **JSON)
                assert refused.status == 401
                assert refused.error["code"] == "invalid_api_key"
                assert KEY not in refused.body.decode()
        for scheme in (right, right.replace("Bearer", "bearer")):
            answered = server.ask(
                "POST", "/v1/completions", completion(), Authorization=scheme, **JSON
            )
            assert answered.status == 200
        assert server.ask("GET", "/health").status == server.ask("GET", "/metrics").status == 200


def test_a_model_that_fails(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(model, max_running=1) as server:
        with monkeypatch.context() as broken:
            broken.setattr(Engine, "step", lambda engine: 1 / 0)
            answered = server.complete()
            assert (answered.status, answered.error["code"]) == (500, "model_failed")
            *_, last = server.complete(stream=True).events
            assert last["error"]["type"] == "server_error"
        assert server.complete().status == 200
        assert server.ask("GET", "/health").status == 200
        with monkeypatch.context() as broken:
            broken.setattr("fptq_onnx.serving.service.Service.submit", lambda self, request: 1 / 0)
            answered = server.complete()
            assert (answered.status, answered.error["code"]) == (500, "internal")
        assert server.service is not None
        server.service._scheduler.close()
        assert server.ask("GET", "/health").status == 503
        assert server.complete().status == 503
