"""What is under way when the server is told to stop, and what it does not wait for."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.command_line import MODEL
from support.http_serving import Server, completion, in_thread, serving

from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.serving import app, http_server

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def stopped(server: Server) -> tuple[float, str]:
    """Seconds that it took to end, and what it wrote to standard error."""
    assert server.process is not None and server.process.stderr is not None
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    return time.monotonic() - started, server.process.stderr.read()


@pytest.mark.process
def test_a_body_that_is_half_sent_is_refused_at_once() -> None:
    with serving() as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with connection:
            connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.3)  # until it is being read
            seconds, said = stopped(server)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body)["error"]["code"] == "shutting_down"
        assert seconds < http_server._MARGIN - 1
        assert "Traceback" not in said


@pytest.mark.process
def test_a_client_that_never_reads_is_left() -> None:
    with serving() as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", server.port))
            connection.setblocking(False)
            request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
            try:
                for _ in range(5000):
                    connection.send(request)
            except BlockingIOError:
                pass
            time.sleep(1)  # until its answers are stuck
            seconds, said = stopped(server)
        # Not the 30 s that running texts would have.
        assert seconds < http_server._MARGIN + 5
        assert "Traceback" not in said


def test_long_prompts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones find a thread while many long ones are split into tokens."""
    model = LanguageModel.open(MODEL, threads=1)
    working = most = 0

    def slow(self: LanguageModel, text: str) -> tuple[int, ...]:
        nonlocal working, most
        if len(text) > app._LONG_BODY:
            working += 1
            most = max(most, working)
            time.sleep(0.2)
            working -= 1
        return (1, 2, 3)

    monkeypatch.setattr(LanguageModel, "encode", slow)
    with in_thread(model) as server, ThreadPoolExecutor(40) as pool:
        long = [pool.submit(server.complete, "a" * 40_000, max_tokens=2) for _ in range(30)]
        time.sleep(0.2)
        started = time.monotonic()
        assert server.complete(max_tokens=2).status == 200
        assert time.monotonic() - started < 2 < 30 * 0.2
        assert not all(one.done() for one in long)
        assert [one.result().status for one in long] == [200] * 30
    assert most == 1


def test_a_slash_at_the_end_leads_nowhere() -> None:
    with in_thread(LanguageModel.open(MODEL, threads=1)) as server:
        found = server.ask("POST", "/v1/completions/", completion(), Host="elsewhere.example")
        assert found.status == 404 and "location" not in found.headers
