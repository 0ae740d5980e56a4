"""The messages of a chat: text by known roles. What a template would not see is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fptq_onnx.serving.api_error import ApiError, wrong

# "developer" is what OpenAI calls "system" by now; templates know the older name.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_KNOWN = {"role", "content", "name"}
# Clients send an answer's message back as it came: what says nothing there is no reason to refuse.
_NOTHING: dict[str, tuple[object, ...]] = {
    "tool_calls": ([],), "annotations": ([],), "refusal": ("",),
}  # fmt: skip


def read_messages(messages: object) -> list[dict[str, str]]:
    """The messages for the chat template: role, content, and name where one is given.

    Raises:
        ApiError: 400, for anything but text of a system, user or assistant.
    """
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages must be a list of at least one message")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise wrong(where, f'{where} must be {{"role": ..., "content": ...}}')
    role = _ROLES.get(message["role"])
    if role is None:
        raise wrong(
            f"{where}.role", f"{where}.role can only be {', '.join(sorted(_ROLES))} here, "
            f"not {message['role'][:64]!r}",
        )  # fmt: skip
    _check_fields(message, where)
    read = {"role": role, "content": _text(message.get("content"), f"{where}.content")}
    name = message.get("name")
    if name is not None:
        if not isinstance(name, str):
            raise wrong(f"{where}.name", f"{where}.name must be text")
        read["name"] = name
    return read


def _check_fields(message: Mapping[str, Any], where: str) -> None:
    for field, value in message.items():
        if field in _KNOWN or value is None or value in _NOTHING.get(field, ()):
            continue
        name = f"{where}.{field[:64]}"
        raise ApiError(
            400, f"the field {name} is not supported: leave it out", param=name,
            code="unknown_parameter",
        )  # fmt: skip


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, f"{where} must be text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str) or set(part) != {"type", "text"}:
            raise wrong(
                where, f'{where} must be text, or parts {{"type": "text", "text": ...}}: '
                "no images or audio",
            )  # fmt: skip
        texts.append(text)
    if not texts:
        raise wrong(where, f"{where} must be text: it has no parts")
    return "".join(texts)
