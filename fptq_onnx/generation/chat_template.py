"""The chat template that comes with a model: messages to the text it was trained on.

It is a Jinja program written by whoever published the model, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import read_config

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_MOST_SOURCE = 1 << 20  # real ones have some 20,000 characters at most
_MOST_FORM = 100
_MOST_ERROR = 300


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        file: str = TEMPLATE_FILE,
    ) -> None:
        """Compile a template.

        Args:
            source: the Jinja text.
            special_tokens: what it can name besides messages, such as bos_token.
            file: name of the file it comes from, for messages.

        Raises:
            FptqError: not a valid template, or longer than templates are.
        """
        from fptq_onnx.generation.bounded_jinja import BoundedEnvironment  # only chat needs Jinja

        self._name = f"the model's chat template ({file})"
        if len(source) > _MOST_SOURCE:
            raise FptqError(
                f"{self._name} has {len(source)} characters, more than {_MOST_SOURCE}: remove it"
            )
        self._environment = BoundedEnvironment()
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = self._environment.bounded_template(source)
        except Exception as error:  # Jinja's own, and Python's of what is nested too deeply
            raise FptqError(f"{self._name} is not valid Jinja: {_cut(error)}") from error
        self._special = dict(special_tokens or {})

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each {"role": "system" | "user" | "assistant", "content": text}.
            add_generation_prompt: end with what an answer begins after.

        Raises:
            FptqError: the template refuses the messages, fails, or builds far more than a prompt.
        """
        from fptq_onnx.generation.bounded_jinja import TooMuchError

        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            **self._special,
        }
        try:
            return self._environment.bounded_render(self._template, variables)
        except TooMuchError as error:
            raise FptqError(
                f"{self._name} builds far more text than a prompt can be: mend or remove it, or "
                "use the text as it is (--raw)"
            ) from error
        except Exception as error:  # a template can raise anything that Python can
            raise FptqError(
                f"{self._name} refuses the messages: {_cut(error)}; use the text as it is (--raw)"
            ) from error


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, or tokenizer_config.json's.

    Returns:
        None where the model has none: it is not made for chat.

    Raises:
        FptqError: a template that cannot be read or compiled.
    """
    config = read_config(folder, _CONFIG_FILE)
    file = folder / TEMPLATE_FILE
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if file.is_file():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise FptqError(f"cannot read {file}: {error}; mend or remove it") from error
    if not isinstance(source, str):
        return None
    tokens = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[key] = content
    return ChatTemplate(source, tokens, file=TEMPLATE_FILE if file.is_file() else _CONFIG_FILE)


def _strftime_now(form: str) -> str:
    if len(form) > _MOST_FORM:  # what Python gives for it may be 256 times as long
        raise ValueError("the form of a date is too long")
    return datetime.datetime.now().strftime(form)


def _cut(error: Exception) -> str:
    """The message without line ends, and no longer than a person reads."""
    text = " ".join(str(error)[: 2 * _MOST_ERROR].split())
    return text if len(text) <= _MOST_ERROR else f"{text[:_MOST_ERROR]}..."


def _refuse(message: Any) -> NoReturn:
    raise ValueError(message if isinstance(message, str) else "it gives no reason")
