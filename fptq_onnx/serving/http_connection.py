"""One connection: uvicorn's, with an end to how long a request's head may be.

httptools gathers a header until it ends, and uvicorn all headers of a request, however large; that
goes for those after a chunked body, too.
"""

from __future__ import annotations

import json
from asyncio import BaseTransport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fptq_onnx.serving.api_error import ApiError

MAX_HEAD = 64 << 10  # bytes of the address and all headers
_LINGER = 2.0  # seconds in which a client may still write before it reads its refusal


class HttpConnection(HttpToolsProtocol):
    """Refuses a head that is too long with 431, and what is not HTTP with 400."""

    _pending = 0  # bytes received since the parser last made something of them
    _size = 0  # bytes of the address and headers of this request
    _refused = False

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._refused:
            return
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MAX_HEAD:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of its address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one after the body."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come."""
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request has come."""
        self._pending = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._pending = 0
        self._size += size
        if self._size > MAX_HEAD:
            raise ValueError("the head is too long")  # the parser stops: send_400_response

    def send_400_response(self, msg: str) -> None:
        """Refuse and close; uvicorn calls this when the parser has stopped.

        Args:
            msg: uvicorn's, for a log.
        """
        if self._refused:
            return
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer to the request before
            return
        error = ApiError(400, "this is not HTTP/1.1", code="invalid_http")
        if max(self._pending, self._size) > MAX_HEAD:
            error = ApiError(
                431, f"the request's head has more than {MAX_HEAD} bytes", code="headers_too_large"
            )
        body = json.dumps(error.body()).encode()
        phrase = b"Bad Request" if error.status == 400 else b"Request Header Fields Too Large"
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (error.status, phrase, len(body), body)
        )
        # Closed at once, what is still unread would reset the connection before this was read.
        self.transport.write_eof()
        self.loop.call_later(_LINGER, _close, self.transport)


def _close(transport: BaseTransport) -> None:
    transport.close()
