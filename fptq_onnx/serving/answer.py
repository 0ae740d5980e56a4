"""The response to one request: text as it comes, or all at once, and nothing for who has left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Delta, Request
from fptq_onnx.serving.answer_format import CompletionFormat
from fptq_onnx.serving.read_request import Asked
from fptq_onnx.serving.service import Service
from fptq_onnx.serving.ticket import ClientLeftError, Ticket

# Beyond a request's time, for a client that does not read what it was sent.
_GRACE = 5.0


class Answer(Response):
    """Generates while it is sent."""

    def __init__(
        self, service: Service, request: Request, form: CompletionFormat, asked: Asked
    ) -> None:
        """Describe the answer.

        Args:
            service: the model.
            request: checked.
            form: what it looks like.
            asked: whether it is streamed, with counts at the end, and with token ids.
        """
        super().__init__()
        self._service, self._request, self._form = service, request, form
        self._stream, self._include_usage = asked.stream, asked.include_usage
        self._with_ids = asked.token_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and send.

        Raises:
            ApiError: before anything was sent; later errors are told in the stream.
        """
        async with self._generating(receive) as ticket:
            if self._stream:
                with anyio.move_on_after(self._service.settings.timeout + _GRACE):
                    await self._send_events(ticket, send)
                return
            deltas: list[Delta] = []
            while not deltas or deltas[-1].finish_reason is None:
                deltas += await self._take(ticket)
            text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish_reason
            assert finish is not None
            whole = self._form.whole(text, finish, self._ids(deltas), ticket)
        await JSONResponse(whole)(scope, receive, send)

    @asynccontextmanager
    async def _generating(self, receive: Receive) -> AsyncIterator[Ticket]:
        """A ticket that ends when the client leaves, and with the block."""
        ticket = self._service.submit(self._request)
        watch = asyncio.create_task(_watch(receive, ticket))
        try:
            yield ticket
        finally:
            watch.cancel()
            self._service.release(ticket)

    def _ids(self, deltas: list[Delta]) -> list[int] | None:
        if not self._with_ids:
            return None
        return [delta.token for delta in deltas if delta.token is not None]

    async def _take(self, ticket: Ticket) -> list[Delta]:
        try:
            return await ticket.take()
        except FptqError as error:
            raise self._service.refusal(error) from error

    async def _send_events(self, ticket: Ticket, send: Send) -> None:
        deltas = await self._take(ticket)  # the status is not sent before the prompt was run
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would collect events
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = self._form.first()
        body = b"" if first is None else _event(first)
        finish: str | None = None
        try:
            while finish is None:
                text = "".join(delta.text for delta in deltas)
                finish = deltas[-1].finish_reason if deltas else None
                ids = self._ids(deltas)
                if text or ids or finish is not None:
                    body += _event(self._form.part(text, finish, ids))
                if finish is None:
                    if body:
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                    body, deltas = b"", await ticket.take()
            if self._include_usage:
                body += _event(self._form.counts(ticket))
        except ClientLeftError:
            return
        except FptqError as error:
            body += _event(self._service.refusal(error).body())
        body += b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": False})


async def _watch(receive: Receive, ticket: Ticket) -> None:
    """Tell a ticket when its client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    ticket.put(ClientLeftError("the client left"))


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
