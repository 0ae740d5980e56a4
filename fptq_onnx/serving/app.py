"""The ASGI app: routes and their errors. Any ASGI server runs it; http_server.py does here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fptq_onnx.errors import FptqError
from fptq_onnx.generation import engine
from fptq_onnx.serving.access import CountRequests, check_key
from fptq_onnx.serving.answer import Answer
from fptq_onnx.serving.answer_format import ChatFormat, CompletionFormat
from fptq_onnx.serving.api_error import SERVER, ApiError, wrong
from fptq_onnx.serving.read_body import TooLargeError, TooLargeResponse, parse_json, read_body
from fptq_onnx.serving.read_request import Asked, read_chat, read_completion
from fptq_onnx.serving.scheduler import ShuttingDownError
from fptq_onnx.serving.service import Service

_LONG_BODY = 32 << 10  # bytes


def create_app(service: Service) -> Starlette:
    """The app for one model; its lifespan starts and stops the service.

    Args:
        service: not started.
    """
    endpoints = _Endpoints(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    routes = [
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/health", endpoints.health),
        Route("/metrics", endpoints.metrics),
    ]
    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(CountRequests, metrics=service.metrics, routes=paths)],
        exception_handlers={
            ApiError: _api_error, HTTPException: _http_error, Exception: _bug,
        },
    )  # fmt: skip
    app.router.redirect_slashes = False  # it would lead to whatever host the request names
    return app


class _Endpoints:
    """The routes' functions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._long = asyncio.Semaphore(1)

    async def completions(self, request: Request) -> Response:
        """Go on from a text."""
        asked, prompt = await self._read(self._read_completion, await self._body(request))
        return Answer(self._service, prompt, CompletionFormat(self._service.name), asked)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        asked, prompt = await self._read(self._read_chat, await self._body(request))
        return Answer(self._service, prompt, ChatFormat(self._service.name), asked)

    async def models(self, request: Request) -> Response:
        """The one model."""
        check_key(request, self._service.settings.api_key)
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def model(self, request: Request) -> Response:
        """The model, by its name."""
        check_key(request, self._service.settings.api_key)
        self._check_name(request.path_params["name"])
        return JSONResponse(self._description())

    async def health(self, request: Request) -> Response:
        """200 while requests are taken."""
        if not self._service.healthy:
            raise ApiError(503, "the model cannot be run", kind=SERVER, code="model_failed")
        if self._service.draining:
            raise ApiError(503, "the server is shutting down", kind=SERVER, code="shutting_down")
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Numbers for Prometheus."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _body(self, request: Request) -> bytes:
        settings = self._service.settings
        check_key(request, settings.api_key)
        reading = asyncio.ensure_future(read_body(request, settings.max_body))
        ending = asyncio.ensure_future(self._service.draining_begins.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            raise self._service.refusal(ShuttingDownError("the server is shutting down"))
        finally:
            reading.cancel()
            ending.cancel()

    async def _read(
        self, read: Callable[[bytes], tuple[Asked, engine.Request]], body: bytes
    ) -> tuple[Asked, engine.Request]:
        """Parse and split into tokens, beside the event loop.

        A megabyte of text takes a second and its hundredfold in memory: one at a time, so that
        short ones find a thread that is free.
        """
        if len(body) <= _LONG_BODY:
            return await asyncio.to_thread(read, body)
        async with self._long:
            return await asyncio.to_thread(read, body)

    def _read_completion(self, body: bytes) -> tuple[Asked, engine.Request]:
        fields = parse_json(body)
        self._check_name(fields.get("model"))
        asked, prompt = read_completion(fields)
        if isinstance(prompt, str):
            try:
                ids = self._service.model.encode(prompt)
            except FptqError as error:
                raise wrong("prompt", str(error)) from error
            if not ids:
                raise wrong("prompt", "the prompt is empty and the model has no beginning token")
        else:
            ids = prompt
            size = self._service.vocabulary
            if not all(0 <= token < size for token in ids):
                unknown = next(token for token in ids if not 0 <= token < size)
                name = self._service.model.tokenizer.id_to_token(unknown) if unknown > 0 else None
                which = "" if name is None else f": {unknown} is {name!r}, which the model has not"
                raise wrong("prompt", f"token ids must be from 0 to {size - 1}{which}")
        return asked, _for_engine(asked, ids)

    def _read_chat(self, body: bytes) -> tuple[Asked, engine.Request]:
        fields = parse_json(body)
        self._check_name(fields.get("model"))
        asked, messages = read_chat(fields)
        if self._service.model.template is None:
            raise ApiError(
                400, "the model has no chat template: use /v1/completions", code="no_chat_template"
            )
        try:
            ids = self._service.model.encode_chat(messages)
        except FptqError as error:
            raise wrong("messages", str(error)) from error
        if not ids:
            raise wrong("messages", "the model's chat template gives an empty text for them")
        return asked, _for_engine(asked, ids)

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str):
            raise wrong("model", f"model must be a name: {self._service.name!r}")
        if name != self._service.name:
            raise ApiError(
                404, f"the model {name[:64]!r} does not exist; {self._service.name!r} does",
                param="model", code="model_not_found",
            )  # fmt: skip

    def _description(self) -> dict[str, object]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "fptq-onnx",
            "max_model_len": self._service.context_length,
        }


def _for_engine(asked: Asked, ids: tuple[int, ...]) -> engine.Request:
    return engine.Request(
        ids, asked.max_tokens, asked.sampling, stop=asked.stop, ignore_eos=asked.ignore_eos
    )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    unread = isinstance(error, TooLargeError) and error.unread
    kind = TooLargeResponse if unread else JSONResponse
    return kind(error.body(), status_code=error.status, headers=error.headers())


async def _http_error(request: Request, error: Exception) -> Response:
    """Of the framework: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    what = {404: f"there is nothing at {request.url.path[:64]}", 405: "not with this method"}
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    told = ApiError(error.status_code, what.get(error.status_code, error.detail), code=code)
    headers = dict(error.headers or {})
    return JSONResponse(told.body(), status_code=told.status, headers=headers)


async def _bug(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s %s failed", request.method, request.url.path)
    told = ApiError(500, "the server failed; its log says why", kind=SERVER, code="internal")
    return JSONResponse(told.body(), status_code=500)
