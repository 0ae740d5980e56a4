"""The JSON object in the body of a request, up to a size."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request

from fptq_onnx.serving.api_error import ApiError

# Read of a body that is too large, so that a client which first writes and then reads gets to
# read the answer; and how long any body may take.
_DISCARD = 16 << 20
_SECONDS = 60.0


async def read_body(request: Request, max_body: int) -> bytes:
    """All of a body.

    Args:
        request: its head has been read.
        max_body: bytes.

    Raises:
        ApiError: 413 when it is larger, 415 when it is not said to be JSON, 408 when it is slow,
            400 when the client leaves.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps other sites' pages in a browser from using a server on the same machine.
        raise ApiError(
            415, "the request must be JSON: send the header Content-Type: application/json"
        )
    too_large = ApiError(
        413, f"the request has more than {max_body} bytes", code="request_too_large"
    )
    declared = request.headers.get("content-length", "")
    over = declared.isdigit() and int(declared) > max_body
    if over and request.headers.get("expect", "").lower() == "100-continue":
        raise too_large  # it has sent nothing yet
    try:
        body, size = await asyncio.wait_for(_receive(request, max_body), _SECONDS)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the request took more than {_SECONDS:g} s to arrive") from error
    if size > max_body:
        raise too_large
    return body


async def _receive(request: Request, max_body: int) -> tuple[bytes, int]:
    """What fits of a body, and its size as far as it was read."""
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left in the middle of its request")
        part = message.get("body", b"")
        size += len(part)
        if size <= max_body:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body", False) or size > max_body + _DISCARD:
            return b"".join(parts), size


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
