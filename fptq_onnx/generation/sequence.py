"""What is asked of an engine, and what it gives: requests, sequences on their way, and deltas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.sampling import SamplingSettings

FinishReason = Literal["stop", "length", "cancelled", "failed"]


def check_stops(stops: Iterable[str]) -> None:
    """Refuse stop strings that would end every text.

    Raises:
        FptqError: one is empty.
    """
    if "" in stops:
        raise FptqError("a stop string is empty, which would end every text: leave it out")


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        prompt: ids, at least one, with BOS where the model wants it.
        max_tokens: tokens at most, 0 for none; None for as many as the context holds.
        sampling: how they are chosen.
        stop: strings that end the text, none empty; they are not given out.
        ignore_eos: go on after the model ended its text (for measuring speed).
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty stop string.

        Raises:
            FptqError: there is one.
        """
        check_stops(self.stop)


@dataclass(eq=False)
class Generation:
    """One sequence on its way.

    Attributes:
        request: what it was asked for.
        tokens: ids chosen so far, without the one that ended the text.
        text: what was given out so far; without a tokenizer always "".
        finish_reason: "stop" after the end token or a stop string, "length" when max_tokens or the
            context is used up, "cancelled", "failed"; None while it goes on.
        reused: tokens of the prompt that the cache still held from the sequence before.
        error: why it failed.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    reused: int = 0
    error: FptqError | None = None


@dataclass(frozen=True)
class Delta:
    """What one step gave a sequence.

    Attributes:
        generation: the sequence.
        token: the id chosen; None where that was the end token, where none could be chosen, and
            while the prompt is not fed to its end.
        text: text that has become certain, often "".
        finish_reason: set with the last one.
    """

    generation: Generation
    token: int | None
    text: str
    finish_reason: FinishReason | None
