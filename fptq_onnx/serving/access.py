"""What stands before every route: the API key, and the count of requests by status."""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fptq_onnx.serving.api_error import ApiError
from fptq_onnx.serving.metrics import Metrics


def check_key(request: Request, key: str | None) -> None:
    """Let a request pass that has the key, as `Authorization: Bearer KEY`.

    Raises:
        ApiError: 401.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Headers are Latin-1; in constant time, so that answers do not tell how much was right.
    same = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise ApiError(
            401, "the API key is missing or wrong: send Authorization: Bearer KEY",
            code="invalid_api_key",
        )  # fmt: skip


class CountRequests:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        """Stand before an app.

        Args:
            app: it.
            metrics: where to count.
            routes: paths told apart; all others are one, for anybody can ask for any path.
        """
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look at the status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # unless something is sent

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = scope["path"] if scope["path"] in self._routes else "other"
        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.http.labels(route, str(status)).inc()
