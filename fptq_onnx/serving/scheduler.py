"""One thread runs the model: requests join and leave its batch between decode steps.

    scheduler = Scheduler(new_engine, deliver, max_waiting=64)
    scheduler.start()
    scheduler.submit(job)       # from any thread; `deliver` gets its deltas

In each round the thread lets go of those that were cancelled, feeds some tokens of prompts, first
come, first served, and gives every running request a token. A long prompt is fed in pieces, one in
a round: those that run slow down meanwhile, but do not stand still. What a decode step gave is
delivered in one call, so that an event loop is woken once and not for each sequence.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Delta, Engine, Generation, Request
from fptq_onnx.generation.kv.base import CHUNK


class QueueFullError(FptqError):
    """As many requests wait as may."""


class ShuttingDownError(FptqError):
    """No request is taken any more, or this one was given up."""


class ModelFailedError(FptqError):
    """The model could not be run."""


class Job:
    """A request in the scheduler's hands; subclasses add what `deliver` needs to know."""

    def __init__(self, request: Request) -> None:
        """Hold a request."""
        self.request = request


# A job's next delta, or the error that ends it.
Event = tuple[Job, Delta | FptqError]


def _busy(waiting: int) -> str:
    who = f"{waiting} requests wait already" if waiting else "all places are taken"
    return f"{who}; try again later"


class Scheduler:
    """See the module."""

    def __init__(
        self,
        new_engine: Callable[[], Engine],
        deliver: Callable[[Sequence[Event]], None],
        *,
        max_waiting: int,
        prefill_tokens: int = CHUNK,
        observe_step: Callable[[int, float], None] | None = None,
    ) -> None:
        """Make the engine.

        Args:
            new_engine: makes it; again, should the model fail in the middle of a step.
            deliver: called with events, mostly by the thread that runs the model; it must not
                raise. Nothing comes for a job after its last event; one that was cancelled may get
                what was on its way, and no last event.
            max_waiting: requests that wait for a place, at most.
            prefill_tokens: tokens of prompts fed between two steps, or of one prompt at a time.
            observe_step: told the sequences and seconds of each decode step.
        """
        self._new_engine, self._deliver = new_engine, deliver
        self._observe_step = observe_step
        self._max_waiting, self._prefill_tokens = max_waiting, prefill_tokens
        self._engine = new_engine()
        self._changed = threading.Condition()  # guards the four below
        self._waiting: deque[Job] = deque()
        self._cancelled: set[Job] = set()
        self._draining = self._closed = False
        self._running: dict[Generation, Job] = {}  # the thread's own
        self._feeding: Generation | None = None  # the one of them whose prompt is not all fed
        self._joining = 0  # 1 while a job is in neither
        self._thread = threading.Thread(target=self._run, name="fptq-model", daemon=True)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running) + self._joining

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer at most; None for no limit."""
        return self._engine.context_length

    @property
    def alive(self) -> bool:
        """Whether the model can be run."""
        return self._thread.is_alive() and not self._closed

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a request wait for its place.

        Raises:
            QueueFullError: too many wait.
            ShuttingDownError: after `drain` or `close`.
            FptqError: see Engine.check.
        """
        self._engine.check(job.request)
        with self._changed:
            if self._draining or self._closed:
                raise ShuttingDownError("the server is shutting down; try again later")
            # Those who will join in the next round do not wait in the sense of the limit.
            if len(self._waiting) >= self._max_waiting + max(0, self._free()):
                raise QueueFullError(_busy(len(self._waiting)))
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a request up: it leaves before the next step. One that has ended is left alone."""
        with self._changed:
            try:
                self._waiting.remove(job)
            except ValueError:
                self._cancelled.add(job)
                self._changed.notify()

    def drain(self) -> None:
        """Take no more requests; those that wait end with ShuttingDownError, running ones go on."""
        with self._changed:
            self._draining = True
            given_up = list(self._waiting)
            self._waiting.clear()
        self._fail(given_up, ShuttingDownError("the server is shutting down; try again later"))

    def close(self) -> None:
        """Stop after the step in progress; whatever runs ends with ShuttingDownError."""
        self.drain()
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _free(self) -> int:
        return self._engine.room - self._joining

    def _run(self) -> None:
        error: FptqError = ShuttingDownError("the server shut down before the text was complete")
        try:
            while self._round():
                pass
        except Exception as failure:  # whatever it was, nobody may wait for ever
            error = ModelFailedError(f"the model stopped working: {failure}")
            raise
        finally:
            with self._changed:
                self._closed = True
            self._fail(self._running.values(), error)
            self._running.clear()
            self.drain()

    def _round(self) -> bool:
        """Cancel, join, step; False after `close`."""
        with self._changed:
            while not (self._waiting or self._cancelled or self._running or self._closed):
                self._changed.wait()
            if self._closed:
                return False
            cancelled, self._cancelled = self._cancelled, set()
        for generation in [one for one, job in self._running.items() if job in cancelled]:
            self._engine.cancel(generation)
            self._leave(generation)
        self._prefill()
        if len(self._running) > (self._feeding is not None):
            self._step()
        return True

    def _prefill(self) -> None:
        """Feed tokens of prompts. A prompt that is longer than one piece has a round for itself."""
        left = self._prefill_tokens
        if self._feeding is not None:
            left -= self._engine.unfed(self._feeding)
            self._feed(self._feeding)
        while (job := self._next(left)) is not None:
            left -= min(self._prefill_tokens, len(job.request.prompt))
            self._join(job)

    def _next(self, tokens: int) -> Job | None:
        """The first that waits, if there is room and its prompt's first piece is not longer."""
        with self._changed:
            if not self._waiting or not self._engine.room:
                return None
            if min(self._prefill_tokens, len(self._waiting[0].request.prompt)) > tokens:
                return None
            self._joining = 1
            return self._waiting.popleft()

    def _join(self, job: Job) -> None:
        try:
            delta = self._engine.add(job.request, at_once=self._prefill_tokens)
        except Exception as error:  # onnxruntime and NumPy raise many kinds
            self._joining = 0
            self._fail([job], ModelFailedError(f"the prompt could not be run: {error}"))
            return
        self._running[delta.generation] = job
        self._joining = 0
        if delta.token is None and delta.finish_reason is None:
            self._feeding = delta.generation
        else:
            self._hand_over([delta])

    def _feed(self, generation: Generation) -> None:
        try:
            delta = self._engine.feed(generation, self._prefill_tokens)
        except Exception as error:
            failed = ModelFailedError(f"the prompt could not be run: {error}")
            self._fail([self._leave(generation)], failed)
            return
        if delta.token is not None or delta.finish_reason is not None:
            self._hand_over([delta])

    def _leave(self, generation: Generation) -> Job:
        if generation is self._feeding:
            self._feeding = None
        return self._running.pop(generation)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            deltas = self._engine.step()
        except Exception as error:  # nobody knows what the KV cache holds now: begin anew
            failed = ModelFailedError(f"the model could not be run: {error}")
            given_up = list(self._running.values())
            self._running.clear()
            self._feeding = None
            self._fail(given_up, failed)
            self._engine = self._new_engine()
            return
        if self._observe_step is not None:
            self._observe_step(len(deltas), time.perf_counter() - started)
        self._hand_over(deltas)

    def _hand_over(self, deltas: Iterable[Delta]) -> None:
        events: list[Event] = []
        for delta in deltas:
            job = self._running[delta.generation]
            if delta.generation is self._feeding:
                self._feeding = None
            if delta.finish_reason is not None:
                del self._running[delta.generation]
            events.append((job, delta.generation.error or delta))
        self._deliver(events)

    def _fail(self, jobs: Iterable[Job], error: FptqError) -> None:
        events: list[Event] = [(job, error) for job in jobs]
        if events:
            self._deliver(events)
