"""The chat template that comes with a model: messages to the text it was trained on.

It is a Jinja program written by whoever published the model, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fptq_onnx.downloaded_file import check_downloaded
from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import read_config
from fptq_onnx.model_folder import side_file
from fptq_onnx.text_encoding import read_text

TEMPLATE_FILE = "chat_template.jinja"


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile a template.

        Args:
            source: the Jinja text.
            special_tokens: what it can name besides messages, such as bos_token.

        Raises:
            FptqError: not a valid template.
        """
        import jinja2  # only models for chat need it
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The settings of transformers' apply_chat_template, which templates are written for.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise FptqError(f"the model's chat template is not valid Jinja: {error}") from error
        self._special = dict(special_tokens or {})

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each {"role": "system" | "user" | "assistant", "content": text}.
            add_generation_prompt: end with what an answer begins after.

        Raises:
            FptqError: the template refuses the messages, or fails.
        """
        try:
            text: str = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # a template can raise anything that Python can
            raise FptqError(
                f"the model's chat template refuses the messages: {error}; use the text as it is "
                "(--raw)"
            ) from error
        return text


def _generation_tag() -> type[Any]:
    """{% generation %} marks what the model wrote, for training; the text is what stands inside."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (so the base class declares it)

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, or tokenizer_config.json's.

    Returns:
        None where the model has none: it is not made for chat.

    Raises:
        FptqError: a template that cannot be read or compiled.
    """
    config = read_config(folder, "tokenizer_config.json")
    file = side_file(folder, TEMPLATE_FILE)
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if file.is_file():
        try:
            check_downloaded(file)
            source = read_text(file)
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
    return ChatTemplate(source, tokens)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own escapes characters of HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
