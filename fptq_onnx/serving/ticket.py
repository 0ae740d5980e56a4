"""One request as the event loop sees it: what the model said so far, and what ends it."""

from __future__ import annotations

import asyncio

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Delta, Request
from fptq_onnx.serving.scheduler import Job, ShuttingDownError


class TimeOutError(FptqError):
    """A request took longer than it may."""


class ClientLeftError(FptqError):
    """Nobody is there to read the answer."""


_FINISHES = {
    ClientLeftError: "client_left", ShuttingDownError: "shut_down", TimeOutError: "timeout",
}  # fmt: skip


class Ticket(Job):
    """A job whose events are awaited; everything here belongs to the event loop."""

    def __init__(self, request: Request, arrived: float) -> None:
        """Hold a request.

        Args:
            request: for the engine.
            arrived: the loop's time.
        """
        super().__init__(request)
        self.arrived = arrived
        self.tokens = 0
        self.reused = 0
        self.ended = False  # nothing more will come of the scheduler
        self.finish = "cancelled"  # how, for the metrics
        self._deltas: list[Delta] = []
        self._error: FptqError | None = None
        self._ready = asyncio.Event()

    def put(self, event: Delta | FptqError) -> None:
        """Take what comes; nothing counts after an error."""
        if self._error is not None:
            return
        if isinstance(event, FptqError):
            self._error, self.finish = event, _FINISHES.get(type(event), "failed")
        else:
            self._deltas.append(event)
            self.finish = event.finish_reason or self.finish
            self.tokens += event.token is not None
            self.reused = event.generation.reused
        self._ready.set()

    async def take(self) -> list[Delta]:
        """What came since the last call; waits until there is something. Errors come last.

        Raises:
            FptqError: what ended the request; see the subclasses here and in scheduler.py.
        """
        await self._ready.wait()
        deltas, self._deltas = self._deltas, []
        if self._error is None:
            self._ready.clear()
        elif not deltas:
            raise self._error
        return deltas
