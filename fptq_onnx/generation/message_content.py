"""The form of a message's content that a chat template reads: a text, or a list of parts.

Templates of models for text alone print the content; those of models for images as well go over
its parts, and print nothing for a text. A template does not say which it is, so it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Digits come through whatever a template does with letters.
_SIGN, _OTHER = "48151623427", "31415926535"

Render = Callable[[Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class Forms:
    """What a template reads in messages of a role.

    Attributes:
        text: a content that is a text comes out.
        parts: the texts of a list of parts come out, and nothing else of the list.
    """

    text: bool
    parts: bool


class MessageContents:
    """Contents in the form that a template reads, role by role."""

    def __init__(self, render: Callable[..., str]) -> None:
        """Begin with a template's renderer, which is called when a role is first met."""
        self._render = render
        self._known: dict[str, Forms] = {}

    def suited(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose contents the template reads; those that it reads already stay."""
        return [self._suited(message) for message in messages]

    def _suited(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content, read = message.get("content"), dict(message)
        if isinstance(content, str):
            forms = self._forms(message.get("role"))
            if forms.parts and not forms.text:
                read["content"] = _as_parts(content)
        elif isinstance(content, list | tuple) and content:
            texts = [_text_of(part) for part in content]
            if all(text is not None for text in texts):
                forms = self._forms(message.get("role"))
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
        for others_as_parts in (False, True):
            other: Any = _as_parts(_OTHER) if others_as_parts else _OTHER
            user = {"role": "user", "content": other}
            for before, after in _surroundings(role, user):
                text = self._comes_out([*before, {"role": role, "content": _SIGN}, *after])
                parts = self._comes_out(
                    [*before, {"role": role, "content": _as_parts(_SIGN)}, *after], whole=True
                )
                if text or parts:
                    return Forms(text, parts)
        if role != "user":  # a role that the template drops, or takes in some other place only
            return self._forms("user")
        return Forms(text=True, parts=False)

    def _comes_out(self, messages: Sequence[Mapping[str, Any]], *, whole: bool = False) -> bool:
        try:
            text = self._render(messages, add_generation_prompt=True)
        except Exception:  # a template can raise anything that Python can
            return False
        # A list that is printed as it stands has its texts in quotation marks.
        return _SIGN in text and not (whole and any(q + _SIGN in text for q in "'\""))


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
