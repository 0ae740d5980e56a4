"""The form of a message's content that a chat template reads: a text, or a list of parts.

Templates of models for text alone print the content; those of models for images as well go over
its parts, and print nothing for a text. A template does not say which it is, so it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fptq_onnx.errors import FptqError

# Digits come through whatever a template does with letters.
_SIGN, _OTHER, _BESIDE = "48151623427", "31415926535", "27182818284"

_DROPPED = (
    "the model's chat template leaves out the text of user messages: use the text as it is (--raw)"
)

Render = Callable[[Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class Forms:
    """What a template reads in messages of a role.

    Attributes:
        text: a content that is a text comes out.
        parts: the texts of a list of parts come out, and nothing else of the list; or the list as
            it stands, where a text does not come out.
        dropped: the template takes a text, and renders the same whatever it says.
    """

    text: bool
    parts: bool
    dropped: bool = False


class MessageContents:
    """Contents in the form that a template reads, role by role."""

    def __init__(self, render: Callable[..., str], *, reads_messages: bool = True) -> None:
        """Begin with a template.

        Args:
            render: its renderer, which is called when a role is first met.
            reads_messages: whether it names the messages at all. One that does not has no text to
                leave out.
        """
        self._render, self._reads = render, reads_messages
        self._known: dict[str, Forms] = {}

    def suited(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose contents the template reads; those that it reads already stay.

        Raises:
            FptqError: the template leaves out what users say, as a text and as parts.
        """
        return [self._suited(message) for message in messages]

    def _suited(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content, read = message.get("content"), dict(message)
        if isinstance(content, str):
            forms = self._forms(message.get("role"))
            if forms.dropped and content and message.get("role") == "user":
                raise FptqError(_DROPPED)
            if forms.parts and not forms.text:
                read["content"] = _as_parts(content)
        elif isinstance(content, list | tuple) and content:
            texts = [_text_of(part) for part in content]
            if all(text is not None for text in texts):
                forms = self._forms(message.get("role"))
                if forms.dropped and message.get("role") == "user":
                    raise FptqError(_DROPPED)
                if not forms.parts:
                    read["content"] = "".join(text for text in texts if text is not None)
        return read

    def _forms(self, role: object) -> Forms:
        name = role if isinstance(role, str) else "user"
        if name not in self._known:
            self._known[name] = self._tried(name)
        return self._known[name]

    def _tried(self, role: str) -> Forms:
        """What comes out of a conversation with a message of the role, in either form."""
        surroundings = []
        for others_as_parts in (False, True):
            other: Any = _as_parts(_OTHER) if others_as_parts else _OTHER
            user = {"role": "user", "content": other}
            for before, after in _surroundings(role, user):
                text = self._tried_with([*before, {"role": role, "content": _SIGN}, *after])
                # A template that prints a part as it stands prints all that is in it.
                part = {**_as_parts(_SIGN)[0], "beside": _BESIDE}
                parts = self._tried_with([*before, {"role": role, "content": [part]}, *after])
                in_text, in_parts = _SIGN in (text or ""), _SIGN in (parts or "")
                if in_text or in_parts:
                    whole = _BESIDE in (parts or "")
                    return Forms(in_text, in_parts and not (in_text and whole))
                if text is not None or parts is not None:
                    surroundings.append((before, after))
        if role != "user":  # a role that the template drops, or takes in some other place only
            return self._forms("user")
        if not surroundings or not self._reads:  # where it refuses, the conversation tells why
            return Forms(text=True, parts=False)
        text_tells, parts_tell = (
            any(
                self._tried_with([*before, {"role": role, "content": form(_SIGN)}, *after])
                != self._tried_with([*before, {"role": role, "content": form(_OTHER)}, *after])
                for before, after in surroundings
            )
            for form in (str, _as_parts)
        )  # what it says may be cut or escaped
        return Forms(
            text_tells or not parts_tell, parts_tell, dropped=not (text_tells or parts_tell)
        )

    def _tried_with(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """What is rendered; None where the template refuses."""
        try:
            rendered: str = self._render(messages, add_generation_prompt=True)
        except Exception:  # a template can raise anything that Python can
            return None
        return rendered


def _surroundings(
    role: str, user: dict[str, Any]
) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Messages before and after one of the role, in the orders that templates accept."""
    if role == "user":
        system = {"role": "system", "content": user["content"]}
        return [([], []), ([system], [])]
    if role in ("system", "developer"):
        return [([], [user])]
    call = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "f", "arguments": {}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    return [([user], [user]), ([user], []), ([user, calls], [])]


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _text_of(part: object) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None
