"""The objects of OpenAI's API that hold what a model said."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fptq_onnx.serving.ticket import Ticket

Object = dict[str, Any]


class CompletionFormat:
    """Of /v1/completions."""

    _prefix, _whole, _part = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        """Begin an answer by the model of this name."""
        self._head: Object = {
            "id": self._prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def first(self) -> Object | None:
        """What a stream begins with."""
        return None

    def part(self, text: str, finish_reason: str | None, ids: list[int] | None) -> Object:
        """Some text of a stream; ids chosen in the meantime, where they are wanted."""
        choice = self._choice(self._delta(text), finish_reason, ids)
        return {**self._head, "object": self._part, "choices": [choice]}

    def whole(self, text: str, finish_reason: str, ids: list[int] | None, ticket: Ticket) -> Object:
        """All text at once, and the ids it was made of, where they are wanted."""
        choice = self._choice(self._message(text), finish_reason, ids)
        return {
            **self._head, "object": self._whole, "choices": [choice], "usage": usage(ticket),
        }  # fmt: skip

    def counts(self, ticket: Ticket) -> Object:
        """The part of a stream that has nothing but the counts."""
        return {**self._head, "object": self._part, "choices": [], "usage": usage(ticket)}

    def _choice(
        self, said: Object, finish_reason: str | None, ids: list[int] | None = None
    ) -> Object:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return choice if ids is None else {**choice, "token_ids": ids}

    def _delta(self, text: str) -> Object:
        return {"text": text}

    def _message(self, text: str) -> Object:
        return {"text": text}


class ChatFormat(CompletionFormat):
    """Of /v1/chat/completions."""

    _prefix, _whole, _part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self) -> Object | None:
        """Who speaks."""
        choice = self._choice({"delta": {"role": "assistant", "content": ""}}, None)
        return {**self._head, "object": self._part, "choices": [choice]}

    def _delta(self, text: str) -> Object:
        return {"delta": {"content": text} if text else {}}

    def _message(self, text: str) -> Object:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


def usage(ticket: Ticket) -> Object:
    """Tokens of a prompt and its answer; cached ones needed no feeding."""
    prompt = len(ticket.request.prompt)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": ticket.tokens,
        "total_tokens": prompt + ticket.tokens,
        "prompt_tokens_details": {"cached_tokens": ticket.reused},
    }
