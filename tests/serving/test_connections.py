"""Heads without an end, bodies that stall, clients that close one direction only."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest
from support.command_line import MODEL
from support.http_serving import Server, completion, in_thread, raw, until

from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.serving import http_server
from fptq_onnx.serving.http_connection import MAX_HEAD

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with in_thread(LanguageModel.open(MODEL, threads=1), max_body=4000) as found:
        yield found
        assert found.complete(max_tokens=2).status == 200


BODY = completion(max_tokens=2)
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
LONG_HEADS = {
    "one header": HEAD + b"X: " + b"a" * (MAX_HEAD + 10) + b"\r\n" + LENGTH + BODY,
    "a header without end": HEAD + b"X: " + b"a" * 20 * MAX_HEAD,
    "many headers": HEAD + b"X: 12345678\r\n" * (MAX_HEAD // 8) + LENGTH + BODY,
    "an address": b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an address without end": b"GET /" + b"a" * 20 * MAX_HEAD,
    "a method without end": b"G" * 100,  # no method at all: 400
}


@pytest.mark.parametrize("kind", LONG_HEADS)
def test_a_head_too_long(server: Server, kind: str) -> None:
    started = time.monotonic()
    head, _, body = raw(server.port, LONG_HEADS[kind]).partition(b"\r\n\r\n")
    assert time.monotonic() - started < 5
    status = 400 if kind == "a method without end" else 431
    assert head.startswith(b"HTTP/1.1 %d " % status)
    error = json.loads(body)["error"]
    assert error["code"] == ("headers_too_large" if status == 431 else "invalid_http")


def test_headers_after_the_body_have_an_end_too(server: Server) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with connection, pytest.raises(OSError):  # closed: nobody keeps what comes
        connection.sendall(chunked + b"X: ")
        for _ in range(1000):
            connection.sendall(b"a" * MAX_HEAD)


def test_a_head_that_is_long_enough(server: Server) -> None:
    longest = HEAD + b"X: " + b"a" * (MAX_HEAD - 500) + b"\r\nConnection: close\r\n" + LENGTH + BODY
    assert raw(server.port, longest).startswith(b"HTTP/1.1 200 ")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(40):  # one after the other on a connection: together longer
        connection.request("GET", "/health", headers={"X": "a" * 5000})
        response = connection.getresponse()
        assert response.read() and response.status == 200
    connection.close()


def test_a_body_said_to_be_too_large_is_refused_before_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        started = time.monotonic()
        connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")  # and no more
        received = b""
        while b"request_too_large" not in received:
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 1
        connection.sendall(b" " * 4999)  # written to its end, the connection ends in good order
        assert connection.recv(1) == b""


def test_a_chunked_body_is_refused_once_it_is_too_large(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        started = time.monotonic()
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + b" " * 4001)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 1


def test_who_closes_one_direction_has_left(server: Server) -> None:
    """As documented: nothing tells a closed connection from one that only stops writing."""

    def left() -> float:
        return server.metric('fptq_generations_total{end="client_left"}')

    before = left()
    body = completion(max_tokens=200, ignore_eos=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: server.metric("fptq_requests_running") == 1)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""
    until(lambda: left() == before + 1)


def test_too_many_open_files_are_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    other: list[dict[str, object]] = []
    loop.default_exception_handler = other.append  # type: ignore[method-assign]
    handler = http_server._Accepting()
    full = OSError(errno.EMFILE, "Too many open files")
    failed = {"message": "socket.accept() out of system resource", "exception": full}
    for _ in range(1000):
        handler(loop, failed)
    handler(loop, {"message": "something else"})
    loop.close()
    (line,) = caplog.messages
    assert "Too many open files" in line and "ulimit -n" in line
    assert other == [{"message": "something else"}]
