"""What was left as it is, and why: an answer of searches and passes, beside what they found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Declined:
    """One place that looked like a match and was left alone.

    what: name of the node, linear, norm or table, or what is not done to it.
    reason: why, for people; it goes on after `what` and a colon, without a full stop.
    """

    what: str
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"no reason is given why {self.what!r} is left alone")

    def __str__(self) -> str:
        """For people: 'MatMul_3: its heads are still repeated: ...'."""
        return f"{self.what}: {self.reason}" if self.what else self.reason
