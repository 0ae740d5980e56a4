"""Progress of long work: a bar on a terminal, plain lines otherwise, both with an estimate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 5.0


def track(
    items: Iterable[T],
    *,
    total: int | None,
    what: str,
    quiet: bool = False,
    stream: TextIO | None = None,
) -> Iterator[T]:
    """Yield `items`, showing progress on stderr.

    Args:
        items: the work.
        total: how many there are, or None when unknown.
        what: a verb phrase such as "calibrating".
        quiet: show nothing.
        stream: where to write; stderr by default.
    """
    out = sys.stderr if stream is None else stream
    if quiet:
        yield from items
    elif out.isatty():
        yield from tqdm(items, total=total, desc=what, file=out, leave=False, dynamic_ncols=True)
    else:
        yield from _plain_lines(items, total, what, out)


def _plain_lines(items: Iterable[T], total: int | None, what: str, out: TextIO) -> Iterator[T]:
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            if total:
                left = (now - started) / done * (total - done)
                print(f"{what}: {done}/{total}, about {left:.0f} s left", file=out, flush=True)
            else:
                print(f"{what}: {done}", file=out, flush=True)
        yield item


def tracker(what: str, quiet: bool) -> Callable[[Iterable[T], int], Iterator[T]]:
    """`track` with its labels given, for functions that take the items and their number."""
    return lambda items, total: track(items, total=total, what=what, quiet=quiet)


def human_bytes(count: int) -> str:
    """1234567 -> '1.2 MB' (decimal units)."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
