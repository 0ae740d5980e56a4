"""The JSON object in the body of a request, up to a size."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from fptq_onnx.serving.api_error import ApiError

_SECONDS = 60.0  # that any body may take
# Of a body that is too large so much is read after its refusal, and so long is waited for more of
# it: a client that first writes and then reads must get to read the answer.
_DISCARD = 16 << 20
_IDLE = 5.0


class TooLargeError(ApiError):
    """A body that is not taken.

    unread: there is more of it than was read.
    """

    def __init__(self, max_body: int, *, unread: bool) -> None:
        """Describe it."""
        super().__init__(
            413, f"the request has more than {max_body} bytes", code="request_too_large"
        )
        self.unread = unread


async def read_body(request: Request, max_body: int) -> bytes:
    """All of a body.

    Args:
        request: its head has been read.
        max_body: bytes.

    Raises:
        TooLargeError: 413, as soon as that is known: by Content-Length nothing is read.
        ApiError: 415 when it is not said to be JSON, 408 when it is slow, 400 when the client
            leaves.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps other sites' pages in a browser from using a server on the same machine.
        raise ApiError(
            415, "the request must be JSON: send the header Content-Type: application/json"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_body):
        asks = request.headers.get("expect", "").lower() == "100-continue"
        raise TooLargeError(max_body, unread=not asks)  # who asks has sent nothing yet
    try:
        return await asyncio.wait_for(_receive(request, max_body), _SECONDS)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the request took more than {_SECONDS:g} s to arrive") from error


async def _receive(request: Request, max_body: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left in the middle of its request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > max_body:
            raise TooLargeError(max_body, unread=more)
        if not more:
            return b"".join(parts)


class TooLargeResponse(JSONResponse):
    """Sent at once; then the connection is kept until the client has written, or stops writing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and read on for a while."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            await asyncio.wait_for(_discard(receive), _SECONDS)
        except asyncio.TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    size = 0
    while size <= _DISCARD:
        message = await asyncio.wait_for(receive(), _IDLE)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: 400, not JSON in UTF-8, or not an object.
    """
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        # A lone surrogate is valid JSON, but no text.
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ApiError(400, "the request is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeError) else f"not JSON: {error}"
        raise ApiError(400, f"the request is {reason}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
