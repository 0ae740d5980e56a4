"""A person at a terminal: a conversation where the model has a chat template, else completions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Request
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.generation.sampling import SamplingSettings
from fptq_onnx.generation.write_text import write_text

_CHAT_HELP = "A conversation. /clear begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer."
_TEXT_HELP = "Each line is gone on from. /exit or Ctrl-D ends, Ctrl-C stops a text."


def interact(
    model: LanguageModel,
    *,
    chat: bool,
    system: str | None = None,
    max_tokens: int | None = None,
    sampling: SamplingSettings | None = None,
    stop: tuple[str, ...] = (),
    read_line: Callable[[str], str] = input,
    stream: TextIO | None = None,
) -> None:
    """Answer line after line until the person leaves.

    What the model said stays in its KV cache: the next turn feeds only what is new.

    Args:
        model: opened.
        chat: keep a conversation, by the model's chat template.
        system: its system message.
        max_tokens: tokens of one answer; None for what the context holds.
        sampling: how tokens are chosen.
        stop: strings that end an answer.
        read_line: asks for a line with a prompt; raises EOFError at the end.
        stream: for answers; standard output by default. Everything else goes to standard error.
    """
    out = sys.stdout if stream is None else stream
    engine = model.engine()
    before = [] if system is None else [{"role": "system", "content": system}]
    messages = list(before)
    print(_CHAT_HELP if chat else _TEXT_HELP, file=sys.stderr)
    while True:
        try:
            line = read_line("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        except UnicodeDecodeError as error:
            print(f"fptq-onnx: error: the line is no text ({error.reason})", file=sys.stderr)
            continue
        if line.strip() in ("/exit", "/quit"):
            return
        if line.strip() == "/clear":
            messages = list(before)
            continue
        if not line.strip():
            continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            ids = model.encode_chat(asked) if chat else model.encode(line)
            request = Request(ids, max_tokens, sampling or SamplingSettings(), stop)
            stats = write_text(engine, request, out, before="" if chat else line)
        except FptqError as error:  # such as a full context: the person can go on
            hint = "; /clear begins a new conversation" if len(messages) > len(before) else ""
            print(f"fptq-onnx: error: {error}{hint}", file=sys.stderr)
            continue
        out.write("\n")
        out.flush()
        print(stats.line(), file=sys.stderr)
        if chat:
            answer = {"role": "assistant", "content": stats.generation.text}
            messages = [*asked, answer]
