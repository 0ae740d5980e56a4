"""A small asyncio client of streamed completions: it costs less than what it measures."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Streamed:
    """One streamed answer.

    text: of all events, joined.
    ids: the answers' ids in its events; one, if nothing was mixed up.
    finish_reason: of the last part.
    tokens: as the server counted them.
    times: when each event came, seconds on time.perf_counter, after the request was sent at `sent`.
    """

    sent: float
    text: str = ""
    ids: set[str] = field(default_factory=set)
    finish_reason: str | None = None
    tokens: int = 0
    times: list[float] = field(default_factory=list)


class Connection:
    """An HTTP connection that is kept between requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, if not connected."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Leave."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.open()
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of an answer."""
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def body(self, headers: dict[str, str]) -> bytes:
        """A body of known length."""
        assert self._reader is not None
        return await self._reader.readexactly(int(headers["content-length"]))

    async def chunk(self) -> bytes:
        """A piece of a body that comes in chunks; b"" after the last."""
        assert self._reader is not None
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def get(self, path: str) -> str:
        """The body of a GET."""
        await self.write(get(path))
        status, headers = await self.head()
        body = await self.body(headers)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {body.decode()}")
        return body.decode()

    async def stream(self, fields: dict[str, Any], *, leave_after: int = 0) -> Streamed:
        """Ask for a streamed completion.

        Args:
            fields: of the request.
            leave_after: chunks after which to go away; 0 to stay.

        Raises:
            RuntimeError: an error in place of an answer, or in the middle of it.
        """
        wanted = {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps({**fields, **wanted}).encode()
        answer = Streamed(time.perf_counter())
        await self.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        status, headers = await self.head()
        if status != 200:
            raise RuntimeError(f"{status} {(await self.body(headers)).decode()}")
        rest, done, chunks = b"", False, 0
        while part := await self.chunk():
            chunks += 1
            if chunks == leave_after:
                self.close()
                return answer
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                if done:
                    raise RuntimeError(f"after the end came {event.decode()}")
                done = event == b"data: [DONE]"
                if not done:
                    _take(answer, json.loads(event.removeprefix(b"data: ")))
        if not done or rest:
            raise RuntimeError("the stream ended before its end")
        return answer


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _take(answer: Streamed, event: dict[str, Any]) -> None:
    if "error" in event:
        raise RuntimeError(event["error"]["message"])
    answer.ids.add(event["id"])
    for choice in event["choices"]:
        if answer.finish_reason is not None:
            raise RuntimeError("text came after the finish reason")
        answer.times.append(time.perf_counter())
        answer.text += choice["text"]
        answer.finish_reason = choice["finish_reason"]
    if "usage" in event:
        answer.tokens = event["usage"]["completion_tokens"]
