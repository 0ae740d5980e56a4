"""The chat template that comes with a model: messages to the text it was trained on.

It is a Jinja program written by whoever published the model, so it runs in Jinja's sandbox. What it
can name and call is what transformers' apply_chat_template gives it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.message_content import MessageContents
from fptq_onnx.generation.template_files import DEFAULT, TOOL_USE, read_templates
from fptq_onnx.model_io.tokenizer_settings import TokenizerSettings


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str | list[str]] | None = None
    ) -> None:
        """Compile a template.

        Args:
            source: the Jinja text.
            special_tokens: what it can name besides messages, such as bos_token.

        Raises:
            FptqError: not a valid template.
        """
        import jinja2  # only models for chat need it

        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise FptqError(f"the model's chat template is not valid Jinja: {error}") from error
        self._special = dict(special_tokens or {})
        self._contents = MessageContents(self._render, reads_messages="messages" in source)
        self._for_tools: ChatTemplate | None = None

    def with_tool_use(self, source: str | None) -> ChatTemplate:
        """The same, with another template for conversations that have tools.

        Raises:
            FptqError: not a valid template.
        """
        if source is not None:
            self._for_tools = ChatTemplate(source, self._special)
        return self

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each {"role": ..., "content": ...} and whatever else the template reads, such
                as tool_calls or reasoning_content. A content is a text, or a list of parts
                {"type": "text", "text": ...}: the template gets the form that it reads.
            tools: JSON schemas of functions; None, as for a conversation without any.
            documents: each {"title": ..., "text": ...}; None, as for a conversation without any.
            add_generation_prompt: end with what an answer begins after.
            variables: others that the template names, such as enable_thinking.

        Raises:
            FptqError: the template refuses the messages, leaves out what users say, or fails.
        """
        if tools is not None and self._for_tools is not None:
            return self._for_tools.render(
                messages, tools=tools, documents=documents,
                add_generation_prompt=add_generation_prompt, **variables,
            )  # fmt: skip
        try:
            return self._render(
                self._contents.suited(messages), tools=tools, documents=documents,
                add_generation_prompt=add_generation_prompt, **variables,
            )  # fmt: skip
        except FptqError:
            raise
        except Exception as error:  # a template can raise anything that Python can
            raise FptqError(
                f"the model's chat template refuses the messages: {error}; use the text as it is "
                "(--raw)"
            ) from error

    def _render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        # transformers passes tools and documents always: a template may ask whether they are none.
        given = {"tools": None, "documents": None, **self._special, **variables}
        text: str = self._template.render(messages=[dict(one) for one in messages], **given)
        return text


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder; see `read_templates` for where it is looked for.

    Returns:
        None where the model has none: it is not made for chat.

    Raises:
        FptqError: a template that cannot be read or compiled, or several and none of them the
            default.
    """
    sources = read_templates(folder)
    if not sources:
        return None
    if DEFAULT not in sources:
        raise FptqError(
            f"{folder} has the chat templates {', '.join(sorted(sources))} and none by the name "
            f"{DEFAULT}: put the one to use there as chat_template.jinja"
        )
    tokens = TokenizerSettings.read(folder).token_texts()
    return ChatTemplate(sources[DEFAULT], tokens).with_tool_use(sources.get(TOOL_USE))


def _environment() -> Any:
    """Jinja with the settings of transformers' apply_chat_template, which templates rely on."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _generation_tag() -> type[Any]:
    """{% generation %} marks what the model wrote, for training; the text is what stands inside."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (so the base class declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A block of its own, as in transformers: what is set inside stays inside.
            call = self.call_method("_text")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes characters of HTML, which a prompt is not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
