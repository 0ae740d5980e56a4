"""`fptq-onnx serve` as a user starts and stops it."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.command_line import MODEL, refused
from support.http_serving import JSON, NAME, Answered, Server, completion, serving, until

from fptq_onnx.cli import serve as serve_command
from fptq_onnx.cli.main import main
from fptq_onnx.errors import FptqError

LONG = {"max_tokens": 240, "ignore_eos": True, "stream": True}


@pytest.mark.process
def test_where_it_serves_is_printed() -> None:
    with serving() as server:
        assert server.said == [f"serving {NAME} on {server.url}"]
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            refused("serve", MODEL, "--port", taken, saying=f"port {taken}: Address already in use")
    with serving("--model-name", "a/b", "--host", "localhost") as server:
        assert server.ask("GET", "/v1/models").json["data"][0]["id"] == "a/b"
        assert server.ask("GET", "/v1/models/a/b").json["max_model_len"] == 256
        assert server.complete(model="a/b").status == 200
        assert server.complete(model=NAME).status == 404


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_ones_end(number: signal.Signals) -> None:
    with serving("--max-running", 4) as server, ThreadPoolExecutor(8) as pool:
        assert server.process is not None
        lone = server.complete(**LONG).text
        running = [pool.submit(begin, server) for _ in range(4)]
        responses = [one.result() for one in running]
        waiting = pool.submit(server.complete, **LONG)
        until(lambda: server.metric("fptq_requests_waiting") == 1)
        server.process.send_signal(number)
        refusal: Answered = waiting.result()
        assert (refusal.status, refusal.error["code"]) == (503, "shutting_down")
        assert refusal.headers["retry-after"] == "1"
        for _, response in responses:
            answered = Answered(200, {}, response.read())
            assert answered.text == lone
            assert answered.events[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/health")


def begin(server: Server) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream whose first byte has come."""
    connection, response = server.send("POST", "/v1/completions", completion(**LONG), **JSON)
    assert response.status == 200
    return connection, response


@pytest.mark.process
def test_draining_has_an_end() -> None:
    with serving("--max-running", 16, "--drain-seconds", 0) as server:
        assert server.process is not None
        with ThreadPoolExecutor(16) as pool:
            begun = list(pool.map(lambda _: begin(server), range(16)))
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        cut = 0
        for _, response in begun:
            last = Answered(200, {}, response.read()).events[-1]
            cut += last.get("error", {}).get("code") == "shutting_down"
        assert cut > 0
        assert server.process.wait(30) == 0
        assert time.monotonic() - started < 5


@pytest.mark.process
def test_a_second_signal_ends_what_runs() -> None:
    with serving("--max-running", 16) as server:
        assert server.process is not None
        with ThreadPoolExecutor(16) as pool:
            begun = list(pool.map(lambda _: begin(server), range(16)))
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGINT)
        bodies = [response.read() for _, response in begun]
        assert any(b"shutting_down" in body for body in bodies)


@pytest.mark.process
def test_idle_connections_do_not_hold_it_up() -> None:
    with serving() as server:
        assert server.process is not None
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert time.monotonic() - started < 5
        for connection in idle:
            connection.close()


@pytest.mark.process
def test_the_key_of_the_environment() -> None:
    key = {serve_command.KEY_VARIABLE: "secret"}
    with serving(environment=key) as server:
        assert server.ask("GET", "/v1/models").status == 401
        assert server.ask("GET", "/v1/models", Authorization="Bearer secret").status == 200
    with serving("--api-key", "other", environment=key) as server:
        assert server.ask("GET", "/v1/models", Authorization="Bearer secret").status == 401
        assert server.ask("GET", "/v1/models", Authorization="Bearer other").status == 200


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "warned"),
    [(("--host", "0.0.0.0"), True), (("--host", "0.0.0.0", "--api-key", "x"), False), ((), False)],
)
def test_a_warning_beyond_loopback(
    options: tuple[str, ...], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(serve_command.KEY_VARIABLE, raising=False)
    with serving(*options) as server:
        assert server.process is not None and server.process.stderr is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        said = server.process.stderr.read()
        assert ("warning: anybody who reaches http://0.0.0.0:" in said) is warned
        assert "Traceback" not in said
        assert warned or not said


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (("--max-running", 0), "max running must be at least 1"),
        (("--max-waiting", -1), "max waiting must be at least 0"),
        (("--max-body", 0), "max body must be at least 1"),
        (("--max-length", 1), "max length must be at least 2"),
        (("--timeout", 0), "timeout must be above 0"),
        (("--timeout", "nan"), "timeout must be above 0"),
        (("--drain-seconds", -1), "drain must be at least 0"),
        (("--drain-seconds", "inf"), "drain must be a number of seconds"),
        (("--api-key", ""), "the API key is empty"),
        (("--api-key", " "), "the API key is empty"),
        (("--api-key=",), "unset FPTQ_API_KEY"),
        (("--model-name=",), "--model-name is empty"),
        (("--max-length", 257), "--max-length 257 is more than the model's context of 256 tokens"),
        (("--threads", -1), "--threads must be"),
        (("--host", "no such host"), "choose another --host"),
        (("--port", 70000), "--port"),
        (("--port", -1), "--port"),
    ],
)
def test_options_that_mean_nothing(
    options: tuple[object, ...], saying: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *map(str, (MODEL, "--port", 0, *options))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fptq-onnx: error: ") and saying in line


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_an_empty_key_in_the_environment(key: str) -> None:
    environment = {**os.environ, serve_command.KEY_VARIABLE: key}
    refused("serve", MODEL, "--port", 0, saying="would protect nothing", env=environment)


def test_no_model_there(tmp_path: Path) -> None:
    refused("serve", tmp_path, "--port", 0, saying="model")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    with pytest.raises(FptqError, match=r"needs uvicorn, .* pip install '/.*\[serve\]'"):
        serve_command.check_extra()


@pytest.mark.process
def test_the_command_line_imports_no_server() -> None:
    code = "import sys, fptq_onnx.cli.main; sys.exit('uvicorn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
