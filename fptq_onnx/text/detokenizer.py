"""Token ids to text as they come, giving out only characters that later tokens cannot change."""

from __future__ import annotations

import re
from collections.abc import Sequence

import tokenizers

# A byte-fallback token, as SentencePiece vocabularies spell it.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What decoders put for bytes that are (so far) no character.
_INCOMPLETE = "\ufffd"


class StreamingDetokenizer:
    """Give the text of a growing list of ids, piece by piece.

    A character may be spread over several tokens, and a decoder may treat the first token of a
    text apart (drop its leading space). So each piece is the difference between two decodings that
    begin at the same earlier token, and is held back while it ends in an incomplete character. A
    run of byte-fallback tokens is held back to its end: its decoding is valid or not as a whole.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, context: Sequence[int] = ()) -> None:
        """Begin after `context`, ids whose text was shown already (a prompt)."""
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._shown = len(self._ids)  # ids whose text was given out
        # Where both decodings begin. A few tokens are context enough; all of them cost time
        # that grows with the square of the length.
        self._begin = max(0, self._shown - 8)

    def push(self, token: int) -> str:
        """Take one more id; return the text that has become certain, often ""."""
        self._ids.append(token)
        text = self._tokenizer.id_to_token(token)
        if text is not None and _BYTE.fullmatch(text):
            return ""
        return self._advance(final=False)

    def finish(self) -> str:
        """The text held back at the end of generation."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._begin : self._shown])
        now = self._decode(self._ids[self._begin :])
        if now.endswith(_INCOMPLETE) and not final:
            return ""
        self._begin, self._shown = self._shown, len(self._ids)
        # A context (token ids) may end inside a character. That counts as not shown: it is given
        # whole once it is complete, and what stands for it is not given if it never will be.
        complete = before.rstrip(_INCOMPLETE)
        new, pending = now[len(complete) :], len(before) - len(complete)
        while pending and new.startswith(_INCOMPLETE):
            new, pending = new[1:], pending - 1
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
