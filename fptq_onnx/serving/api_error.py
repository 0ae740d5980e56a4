"""Errors as OpenAI's API writes them: a status and {"error": {...}}."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """A request that gets no answer, and what the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Describe it.

        Args:
            status: of HTTP.
            message: one sentence for a person.
            kind: OpenAI's "type".
            code: for programs.
            param: the field of the request that is wrong.
            retry_after: seconds after which it may be tried again.
        """
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.retry_after = code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The object that a client gets."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Those that go with the status."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not waited for
        return headers


def wrong(param: str, message: str) -> ApiError:
    """A field that cannot be used: 400."""
    return ApiError(400, message, param=param, code="invalid_value")
