"""Standard output that may go away: closed, full, or a pipe whose reader has left.

What a command prints is not what it is for: a conversion goes on when nobody listens any more.
"""

from __future__ import annotations

import io
import os
import sys


def open_missing_streams() -> bool:
    """Give a process that was started with closed streams some that lead nowhere.

    And let a stream that cannot show a character show a question mark: an old locale should not
    end what is being written.

    Returns:
        Whether standard output was closed.
    """
    closed = sys.stdout is None
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")
    return closed


def discard_output() -> None:
    """Send what is still to be printed nowhere, so that flushing at exit finds no fault either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Printer:
    """Prints lines, flushed so that a log shows each step when it happens.

    failure: the error that stopped the printing, None while all is well. A reader that has left
        on purpose (head, less) is no failure.
    """

    def __init__(self) -> None:
        self.failure: OSError | None = None

    def __call__(self, line: str) -> None:
        """Print a line; after the first that cannot be printed, none is."""
        try:
            print(line, flush=True)
        except BrokenPipeError:
            discard_output()
        except OSError as error:
            self.failure = error
            discard_output()
