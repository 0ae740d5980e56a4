"""Write what a model says to a stream as it comes, until it ends or somebody presses Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from fptq_onnx.generation.engine import Engine, Generation, Request


@dataclass(frozen=True)
class RunStats:
    """What one generation was and took.

    Attributes:
        generation: the sequence.
        prefill_seconds: from the prompt to the first token.
        decode_seconds: of all tokens after the first.
        decoded: tokens after the first, with the one that ended the text.
        interrupted: Ctrl-C ended it.
    """

    generation: Generation
    prefill_seconds: float
    decode_seconds: float
    decoded: int
    interrupted: bool

    def line(self) -> str:
        """The numbers for a person, in tokens per second."""
        generation = self.generation
        fed = len(generation.request.prompt) - generation.reused
        parts = [f"prefill {fed} tokens, {fed / self.prefill_seconds:.1f} tokens/s"]
        if self.decoded:
            rate = self.decoded / self.decode_seconds
            parts.append(f"decode {len(generation.tokens)} tokens, {rate:.1f} tokens/s")
        else:
            parts.append(f"decode {len(generation.tokens)} tokens")
        return "; ".join(parts)


def write_text(engine: Engine, request: Request, stream: TextIO, *, before: str = "") -> RunStats:
    """Generate one sequence.

    Args:
        engine: without active sequences.
        request: the prompt and settings.
        stream: flushed after each piece.
        before: written first, once the request was found to be in order.

    Raises:
        FptqError: see Engine.add.
        KeyboardInterrupt: Ctrl-C for the second time, while the model still computes.
    """
    engine.check(request)
    _write(stream, before)
    started = time.perf_counter()
    first = last = started
    steps = 0
    with _interrupts() as interrupted:
        delta = engine.add(request)
        first = last = time.perf_counter()
        _write(stream, delta.text)
        while not delta.finish_reason and not interrupted.is_set():
            (delta,) = engine.step()
            if delta.generation.error:
                raise delta.generation.error
            last = time.perf_counter()
            steps += 1
            _write(stream, delta.text)
        stopped = delta.finish_reason is None
        engine.cancel(delta.generation)
    return RunStats(delta.generation, first - started, last - first, steps, stopped)


def _write(stream: TextIO, piece: str) -> None:
    if piece:
        stream.write(piece)
        stream.flush()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising; pressed again, it raises.

    So an interrupt falls between two steps, where the KV cache and the text agree.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread is told of signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
