"""The app on a socket of this machine, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from fptq_onnx.errors import FptqError
from fptq_onnx.serving.app import create_app
from fptq_onnx.serving.http_connection import HttpConnection
from fptq_onnx.serving.service import Service

_BACKLOG = 2048
_KEEP_ALIVE = 30  # seconds that a connection is kept between two requests
_MARGIN = 5  # seconds for the last bytes, once nothing is generated any more
_LOOK = 0.2  # seconds between two looks for that
_QUIET = 10.0  # seconds between two lines of the log about too many open files


def bind(host: str, port: int) -> socket.socket:
    """A socket that is ours, but does not listen yet.

    Args:
        host: a name or address.
        port: 0 for any that is free.

    Raises:
        FptqError: no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name"
        raise FptqError(f"cannot listen on {host!r}: {reason}; choose another --host") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise FptqError(
            f"cannot listen on {host} port {port}: {error.strerror}; "
            "choose another --host or --port"
        ) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs of this machine reach a socket."""
    return ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback


def url(bound: socket.socket) -> str:
    """Where clients find a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, bound: socket.socket, *, started: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, then let running ones end.

    Args:
        service: not started.
        bound: see `bind`.
        started: called once requests are answered.
    """
    _allow_many_files()
    asyncio.run(_serve(service, bound, started))


async def _serve(service: Service, bound: socket.socket, started: Callable[[], None]) -> None:
    config = uvicorn.Config(
        create_app(service),
        loop="asyncio",
        http=HttpConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(service.settings.drain) + _MARGIN,
    )
    server = _Server(config, started)
    stopping = _Stopping(service, server)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Accepting())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.signal)
    await server.serve(sockets=[bound])
    await stopping.done()


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again once it has drained."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


class _Stopping:
    """The first signal drains, a second one ends what runs."""

    def __init__(self, service: Service, server: uvicorn.Server) -> None:
        self._service, self._server = service, server
        self._stop: asyncio.Task[None] | None = None

    def signal(self) -> None:
        if self._service.draining:
            self._end()
            return
        self._service.drain()
        self._server.should_exit = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._service.settings.drain, self._end)
        self._watch(loop, loop.time())

    def _watch(self, loop: asyncio.AbstractEventLoop, last_busy: float) -> None:
        """Leave clients that do not read their answers once nothing is generated any more."""
        if not self._service.idle:
            last_busy = loop.time()
        if loop.time() < last_busy + _MARGIN:
            loop.call_later(_LOOK, self._watch, loop, last_busy)
            return
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, HttpConnection):
                connection.transport.abort()

    def _end(self) -> None:
        if self._stop is None:
            self._stop = asyncio.create_task(self._service.stop())

    async def done(self) -> None:
        if self._stop is not None:
            await self._stop


class _Accepting:
    """Says in a line, now and then, that connections wait because too many files are open.

    asyncio would log each failed attempt with its traceback, thousands in a second.
    """

    def __init__(self) -> None:
        self._said = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif loop.time() > self._said + _QUIET:
            self._said = loop.time()
            logging.getLogger(__name__).error(
                "new connections wait: %s; allow more with ulimit -n", context.get("exception")
            )


def _allow_many_files() -> None:
    """Each connection is an open file; the usual 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
