"""The one error a user is meant to read."""

from __future__ import annotations


class FptqError(Exception):
    """Something the user gave, or the machine lacks, stops the work.

    The message is one sentence that says what is wrong and what to do about it. The command line
    prints it on stderr and exits with 2; anything else that escapes is a bug in this project.
    """
