"""The model behind the routes, as the event loop sees it: tickets in, deltas out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Request
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.serving.api_error import SERVER, ApiError
from fptq_onnx.serving.metrics import Metrics
from fptq_onnx.serving.scheduler import (
    Event,
    QueueFullError,
    Scheduler,
    ShuttingDownError,
)
from fptq_onnx.serving.settings import ServerSettings
from fptq_onnx.serving.ticket import ClientLeftError, Ticket, TimeOutError


class Service:
    """One model, its scheduler and its numbers; between `start` and `stop` of one event loop."""

    def __init__(self, model: LanguageModel, name: str, settings: ServerSettings) -> None:
        """Reserve the batch's rows.

        Args:
            model: opened.
            name: what clients call it.
            settings: limits.

        Raises:
            FptqError: no room for the rows.
        """
        self.model, self.name, self.settings = model, name, settings
        self.created = int(time.time())
        self.metrics = Metrics()
        self._scheduler = Scheduler(
            lambda: model.engine(
                max_sequences=settings.max_running, max_length=settings.max_length
            ),
            self._deliver,
            max_waiting=settings.max_waiting,
            observe_step=self.metrics.step,
        )
        self.metrics.watch(lambda: self._scheduler.waiting, lambda: self._scheduler.running)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: dict[Ticket, asyncio.TimerHandle] = {}
        self._mean_seconds = 1.0  # of the last requests
        self.draining = False
        self.draining_begins = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether the model can be run."""
        return self._scheduler.alive

    @property
    def idle(self) -> bool:
        """Whether no text is generated or waits to be."""
        return not self._scheduler.waiting and not self._scheduler.running

    @property
    def vocabulary(self) -> int:
        """Token ids that there are."""
        size = self.model.model.decoder.io.vocab_size or self.model.special.vocab_size
        return size or self.model.tokenizer.get_vocab_size()

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer at most; None for no limit."""
        return self._scheduler.context_length

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    def drain(self) -> None:
        """Take no more requests: those that wait are refused, running ones may end."""
        self.draining = True
        self.draining_begins.set()
        self._scheduler.drain()

    async def stop(self) -> None:
        """End whatever runs, after the step in progress."""
        self.draining = True
        self.draining_begins.set()
        await asyncio.to_thread(self._scheduler.close)

    def submit(self, request: Request) -> Ticket:
        """Let a request wait for its place. The ticket must be released.

        Raises:
            ApiError: 400 where it could never be answered, 429 or 503.
        """
        loop = asyncio.get_running_loop()
        limit = self.context_length
        if limit is not None and len(request.prompt) >= limit:
            raise ApiError(
                400,
                f"the prompt has {len(request.prompt)} tokens, but the model's context is "
                f"{limit}, the answer included; shorten it",
                code="context_length_exceeded",
            )
        ticket = Ticket(request, loop.time())
        try:
            self._scheduler.submit(ticket)
        except FptqError as error:
            raise self.refusal(error) from error
        seconds = self.settings.timeout
        late = TimeOutError(f"the request took more than {seconds:g} s")
        self._timers[ticket] = loop.call_later(seconds, ticket.put, late)
        self.metrics.prompt_tokens.inc(len(request.prompt))
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Be done with a ticket: if its text has not ended, it leaves the batch."""
        self._timers.pop(ticket).cancel()
        if not ticket.ended:
            self._scheduler.cancel(ticket)
        seconds = asyncio.get_running_loop().time() - ticket.arrived
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.metrics.request_seconds.observe(seconds)
        self.metrics.generations.labels(ticket.finish).inc()

    def refusal(self, error: FptqError) -> ApiError:
        """What a client is told of an error."""
        message = str(error)
        if isinstance(error, QueueFullError):
            return ApiError(
                429, message, kind="rate_limit_error", code="queue_full",
                retry_after=self._retry_after(),
            )  # fmt: skip
        if isinstance(error, ShuttingDownError):
            return ApiError(503, message, kind=SERVER, code="shutting_down", retry_after=1)
        if isinstance(error, TimeOutError):
            return ApiError(504, message, kind=SERVER, code="timeout")
        if isinstance(error, ClientLeftError):
            return ApiError(499, message, code="client_left")
        return ApiError(500, message, kind=SERVER, code="model_failed")

    def _retry_after(self) -> int:
        """Seconds until those who wait will have had their turn, roughly."""
        rounds = (self._scheduler.waiting + 1) / self.settings.max_running
        return min(60, max(1, math.ceil(rounds * self._mean_seconds)))

    def _deliver(self, events: Sequence[Event]) -> None:
        """Hand events to the event loop; called by any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: Sequence[Event]) -> None:
        tokens = 0
        for job, event in events:
            assert isinstance(job, Ticket)
            before = job.tokens
            job.put(event)
            tokens += job.tokens - before
            if not before and job.tokens:
                seconds = asyncio.get_running_loop().time() - job.arrived
                self.metrics.first_token_seconds.observe(seconds)
            job.ended = isinstance(event, FptqError) or event.finish_reason is not None
        self.metrics.generated_tokens.inc(tokens)
