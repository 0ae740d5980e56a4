"""How a run behaves, as against what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fptq_onnx.progress import tracker

T = TypeVar("T")


def _no_log(line: str) -> None:
    """Drop a line."""


@dataclass(frozen=True)
class RunContext:
    """Passed down from the command line, so that no step takes each of these by name.

    threads: intra-op threads of ONNX Runtime, 0 lets it choose.
    progress: show progress on stderr.
    log: receives lines for people.
    """

    threads: int = 0
    progress: bool = False
    log: Callable[[str], None] = _no_log

    def tracker(self, what: str) -> Callable[[Iterable[T], int], Iterator[T]]:
        """Wraps items and their number to show progress under a verb phrase."""
        return tracker(what, not self.progress)

    def log_all(self, lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
        """Log lines, then warnings."""
        for line in (*lines, *(f"warning      {text}" for text in warnings)):
            self.log(line)


DEFAULT = RunContext()
