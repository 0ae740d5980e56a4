"""Feed a model for one sequence or several at once, and give out each one's tokens as they come.

    engine = LanguageModel.open(folder).engine(max_sequences=8)
    first = engine.add(Request(prompt=ids, max_tokens=64))     # a Delta: its first token
    while engine.active:
        for delta in engine.step():                            # one token for each
            print(delta.generation, delta.text, delta.finish_reason)

Sequences join and leave between steps; `feed` lets one with a long prompt join bit by bit. None
depends on which others are there: each has its own sampler, and its own part of the KV cache. An
engine is not safe for use by several threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.kv.base import SequenceCache
from fptq_onnx.generation.sampling import Sampler
from fptq_onnx.generation.sequence import Delta, FinishReason, Generation, Request
from fptq_onnx.generation.text_stream import TextStream

__all__ = ["Delta", "Engine", "FinishReason", "Generation", "Request"]


@dataclass(eq=False)
class _Sequence:
    """A sequence, with what chooses and shows its tokens.

    unfed: what of its prompt the cache does not hold yet.
    """

    generation: Generation
    sampler: Sampler
    stream: TextStream | None
    max_tokens: int
    unfed: list[int]


class Engine:
    """See the module."""

    def __init__(
        self,
        cache: SequenceCache,
        *,
        tokenizer: tokenizers.Tokenizer | None = None,
        eos: Collection[int] = (),
        context_length: int | None = None,
    ) -> None:
        """Begin without sequences.

        Args:
            cache: empty; the engine alone uses them from now on.
            tokenizer: for text; without it deltas have tokens only, and stop strings do nothing.
            eos: ids that end a text.
            context_length: tokens a sequence can have, prompt included; None for no limit.
        """
        self._cache = cache
        self._tokenizer = tokenizer
        self._eos = frozenset(eos)
        self._context_length = context_length
        self._active: list[_Sequence] = []  # in the order of the cache's sequences
        self._left: list[int] = []  # what slot 0 still holds of a sequence that has ended

    @property
    def active(self) -> tuple[Generation, ...]:
        """The sequences that go on."""
        return tuple(sequence.generation for sequence in self._active)

    @property
    def context_length(self) -> int | None:
        """Tokens a sequence can have, prompt included; None for no limit."""
        return self._context_length

    @property
    def room(self) -> int:
        """How many more sequences can be added now."""
        return self._cache.max_sequences - len(self._active)

    def check(self, request: Request) -> None:
        """Refuse what could never be generated, without running anything.

        Raises:
            FptqError: an empty prompt, one that fills the context, or max_tokens below 0.
        """
        if not request.prompt:
            raise FptqError(
                "the prompt is empty and the model has no beginning token; give a prompt"
            )
        if request.max_tokens is not None and request.max_tokens < 0:
            raise FptqError(f"--max-tokens must not be negative, got {request.max_tokens}")
        limit = self._context_length
        if limit is not None and len(request.prompt) >= limit:
            raise FptqError(
                f"the prompt has {len(request.prompt)} tokens, but the model's context is "
                f"{limit}; shorten it"
            )

    def add(self, request: Request, *, at_once: int | None = None) -> Delta:
        """Feed a prompt and choose its first token.

        The sequence before is not fed again as far as the prompt repeats it, if none came between.

        Args:
            request: what to generate.
            at_once: tokens to feed now; if the prompt has more, `feed` must follow. None for all.

        Raises:
            FptqError: see `check`; there is no room; or the model cannot be run.
        """
        self.check(request)
        if not self.room:
            raise FptqError(f"the engine holds {self._cache.max_sequences} sequences already")
        prompt = list(request.prompt)
        generation = Generation(request)
        kept, self._left = self._left, []
        # At least two tokens are fed, where there are so many: one alone would go the way of a
        # decode step, whose sums round otherwise, and a draw would depend on what came before.
        reused = _common(kept, prompt[:-2]) if kept and not self._active else 0
        end = len(prompt) if at_once is None else reused + at_once
        if reused:
            self._cache.truncate(0, reused)
            generation.reused = reused
            try:
                logits = self._cache.extend(0, prompt[reused:end])
            except BaseException:
                self._cache.remove(0)
                raise
        else:
            if kept:
                self._cache.remove(0)
            logits = self._cache.append(prompt[:end])
        sequence = _Sequence(
            generation,
            Sampler(request.sampling, prompt),
            TextStream(self._tokenizer, prompt, request.stop) if self._tokenizer else None,
            self._limit(request),
            prompt[end:],
        )
        self._active.append(sequence)
        return self._fed(sequence, logits)

    def feed(self, generation: Generation, tokens: int) -> Delta:
        """Feed more of a prompt that `add` did not feed to its end.

        Args:
            generation: of such a prompt.
            tokens: how many; with the last of the prompt, its first token is chosen.

        Raises:
            FptqError: the model cannot be run; the sequence has left then.
        """
        sequence = self._sequence(generation)
        place = self._active.index(sequence)
        try:
            logits = self._cache.extend(place, sequence.unfed[:tokens])
        except BaseException:
            self._drop(sequence)
            raise
        del sequence.unfed[:tokens]
        return self._fed(sequence, logits)

    def unfed(self, generation: Generation) -> int:
        """Tokens of an active sequence's prompt that are still to be fed."""
        return len(self._sequence(generation).unfed)

    def _sequence(self, generation: Generation) -> _Sequence:
        return next(sequence for sequence in self._active if sequence.generation is generation)

    def _fed(self, sequence: _Sequence, logits: NDArray[np.float32]) -> Delta:
        """Choose a first token, if the prompt was fed to its end."""
        if sequence.unfed:
            return Delta(sequence.generation, None, "", None)
        try:
            delta = self._take(sequence, sequence.sampler.choose(logits))
        except BaseException:
            self._drop(sequence)
            raise
        if delta.finish_reason:
            self._drop(sequence)
        return delta

    def step(self) -> list[Delta]:
        """Give each active sequence whose prompt is fed one more token; those that end leave.

        A prompt on its way is fed one token, too, unless there are none but such: the last of them
        gives the sequence its first token here.

        A sequence that the model gives NaN for fails alone: its error is in its Generation.

        Raises:
            FptqError: the model cannot be run; the engine is of no more use then.
        """
        sequences = list(self._active)
        if all(sequence.unfed for sequence in sequences):
            return []
        # Every sequence of the cache is fed one token: for prompts on their way, the next of them.
        logits = self._cache.decode(
            [(sequence.unfed or sequence.generation.tokens[-1:])[0] for sequence in sequences]
        )
        deltas = []
        for sequence, one in zip(sequences, logits, strict=True):
            del sequence.unfed[:1]
            if sequence.unfed:
                continue
            try:
                deltas.append(self._take(sequence, sequence.sampler.choose(one)))
            except FptqError as error:
                sequence.generation.finish_reason, sequence.generation.error = "failed", error
                deltas.append(Delta(sequence.generation, None, "", "failed"))
        for sequence in sequences:
            if sequence.generation.finish_reason:
                self._drop(sequence)
        return deltas

    def cancel(self, generation: Generation) -> None:
        """End a sequence now; one that has ended already is left alone."""
        for sequence in self._active:
            if sequence.generation is generation:
                generation.finish_reason = "cancelled"
                self._drop(sequence)
                return

    def stream(self, request: Request) -> Iterator[Delta]:
        """Generate one sequence by itself.

        Closing the iterator cancels it.

        Raises:
            FptqError: see `add` and `step`; or other sequences are active.
        """
        if self._active:
            raise FptqError("the engine is generating already: use add and step for several")
        delta = self.add(request)
        try:
            yield delta
            while not delta.finish_reason:
                (delta,) = self.step()
                if delta.generation.error:
                    raise delta.generation.error
                yield delta
        finally:
            self.cancel(delta.generation)

    def _limit(self, request: Request) -> int:
        limits = [request.max_tokens] if request.max_tokens is not None else []
        if self._context_length is not None:
            limits.append(self._context_length - len(request.prompt))
        return min(limits) if limits else 1 << 62

    def _take(self, sequence: _Sequence, token: int) -> Delta:
        """Give a sequence its next token."""
        generation, stream = sequence.generation, sequence.stream
        if not sequence.max_tokens:  # asked for none: the prompt was fed, and counted
            generation.finish_reason = "length"
            return Delta(generation, None, "", "length")
        text = ""
        given: int | None = token
        if token in self._eos and not generation.request.ignore_eos:
            generation.finish_reason, given = "stop", None
        else:
            generation.tokens.append(token)
            text = stream.push(token) if stream else ""
            if stream and stream.stopped:
                generation.finish_reason = "stop"
            elif len(generation.tokens) >= sequence.max_tokens:
                generation.finish_reason = "length"
        if generation.finish_reason and stream:
            text += stream.finish()
            if stream.stopped:  # the stop string ended only with the text
                generation.finish_reason = "stop"
        generation.text += text
        return Delta(generation, given, text, generation.finish_reason)

    def _drop(self, sequence: _Sequence) -> None:
        place = self._active.index(sequence)
        last = self._active.pop()
        if place < len(self._active):
            self._active[place] = last
        if self._active:
            self._cache.remove(place)
        else:  # keep it: a conversation goes on from here
            ids = [*sequence.generation.request.prompt, *sequence.generation.tokens]
            self._left = ids[: self._cache.lengths[0]]


def _common(one: list[int], other: list[int]) -> int:
    """Length of what two lists begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
