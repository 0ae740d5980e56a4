"""A server to ask: the command in a process of its own, or the app in a thread of this one."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.serving.app import create_app
from fptq_onnx.serving.http_connection import HttpConnection
from fptq_onnx.serving.http_server import bind
from fptq_onnx.serving.service import Service
from fptq_onnx.serving.settings import ServerSettings
from support.command_line import MODEL

NAME = MODEL.name


@dataclass
class Answered:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body)
        return content

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has all four fields of OpenAI's."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] and error["type"]
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a stream that was ended properly."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    @property
    def text(self) -> str:
        """Of completions, streamed or not."""
        if self.body.startswith(b"data: "):
            return "".join(one["choices"][0]["text"] for one in self.events if one["choices"])
        return str(self.json["choices"][0]["text"])


@dataclass
class Server:
    """Where a server is."""

    port: int
    process: subprocess.Popen[str] | None = None
    service: Service | None = None
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A request whose answer is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answered:
        """A request and its answer."""
        connection, response = self.send(method, path, body, **headers)
        try:
            return Answered(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def complete(self, prompt: object = "Once upon a time", **fields: object) -> Answered:
        """A completion, greedy unless it is said otherwise."""
        return self.ask("POST", "/v1/completions", completion(prompt, **fields), **JSON)

    def metric(self, name: str) -> float:
        """The value of one metric, labels included in its name; 0 where there is none yet."""
        text = self.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


JSON = {"Content_Type": "application/json"}


def completion(prompt: object = "Once upon a time", **fields: object) -> bytes:
    """The body of a request, greedy unless it is said otherwise."""
    common: dict[str, object] = {"model": NAME, "temperature": 0, "max_tokens": 16}
    return json.dumps({**common, "prompt": prompt, **fields}).encode()


@contextmanager
def serving(
    *options: object, model: Path = MODEL, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """`fptq-onnx serve` on a free port; ended afterwards, and with exit code 0."""
    arguments = ["serve", model, "--port", 0, "--threads", 1, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)$", line.strip())
        assert found, line + process.stderr.read()
        yield Server(int(found[1]), process, said=[line.strip()])
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@contextmanager
def in_thread(model: LanguageModel, **settings: Any) -> Iterator[Server]:
    """The app on a free port, served by a thread."""
    service = Service(model, NAME, ServerSettings(**settings))
    bound = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(service), http=HttpConnection, log_config=None, ws="none",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        until(lambda: server.started)
        yield Server(bound.getsockname()[1], service=service)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def raw(port: int, sent: bytes) -> bytes:
    """All that comes back for some bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)
