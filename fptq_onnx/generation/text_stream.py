"""The text of one sequence as its tokens come, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from fptq_onnx.text.detokenizer import StreamingDetokenizer


class StopStrings:
    """Gives out text up to the first of some strings, and nothing that may be part of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for these strings, none empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take more text; return what is certain to come before any stop string."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back at the end of the text: it has become no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, short of all of it, that `text` ends in."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """Tokens in, text out."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        """Begin after a prompt.

        Args:
            tokenizer: the model's.
            prompt: its ids, whose text is not given out.
            stops: strings that end the text, none empty.
        """
        self._detokenizer = StreamingDetokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def push(self, token: int) -> str:
        """Take one more token; return the text that has become certain, often ""."""
        return self._stops.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """The text held back until the end."""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()
