"""`fptq-onnx run`: its options, where the prompt comes from, and what goes to which stream."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    from fptq_onnx.generation.engine import Request
    from fptq_onnx.generation.language_model import LanguageModel

_DEFAULT_TOKENS = 128


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a model folder with tokenizer.json")
    parser.add_argument(
        "text", nargs="?", metavar="PROMPT",
        help="text to continue, UTF-8; without it, standard input is read, line by line on a "
        "terminal. A prompt that begins with - stands last, after --",
    )  # fmt: skip
    parser.add_argument("--prompt", help="the same as PROMPT")
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    parser.add_argument(
        "--max-tokens", "--max-new-tokens", type=int,
        help=f"new tokens at most ({_DEFAULT_TOKENS}; in a chat, what the context holds)",
    )  # fmt: skip
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads, 0 for ONNX Runtime's choice (0)",
    )
    parser.add_argument("--ids", action="store_true", help="print token ids instead of text")
    chat = parser.add_argument_group("chat, for models with a chat template")
    chat.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    chat.add_argument("--system", metavar="TEXT", help="a system message")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="softmax temperature; 0 is greedy decoding (0)",
    )
    sampling.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K most likely tokens, 0 for all (0)",
    )
    sampling.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with total probability P (1)",
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, repeated tokens become less likely (1)",
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="random seed (a new one each time)")
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="stop before this text; may be repeated",
    )  # fmt: skip


def run_command(options: argparse.Namespace) -> None:
    """Generate text on standard output, and tell the speed on standard error.

    Raises:
        FptqError: see LanguageModel.open and Engine.add; or options that contradict each other.
        KeyboardInterrupt: Ctrl-C, after the text so far was written.
    """
    from fptq_onnx.generation.language_model import LanguageModel
    from fptq_onnx.generation.sampling import SamplingSettings
    from fptq_onnx.generation.sequence import check_stops
    from fptq_onnx.generation.write_text import write_text
    from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer

    prompt = _prompt(options)
    settings = SamplingSettings(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    if options.max_tokens is not None and options.max_tokens < 1:
        raise FptqError(f"--max-tokens must be at least 1, got {options.max_tokens}")
    check_stops(options.stop)
    model = LanguageModel.open(
        options.model,
        tokenizer_folder=options.tokenizer and folder_of_tokenizer(options.tokenizer),
        threads=options.threads or None,
    )
    chats = model.template is not None and not options.raw
    if options.system is not None and not chats:
        raise FptqError("--system needs a model with a chat template, and no --raw")
    common: dict[str, Any] = {"sampling": settings, "stop": tuple(options.stop)}
    if prompt is None:
        if options.ids:
            raise FptqError("--ids needs a prompt: give one, or pipe it in")
        from fptq_onnx.generation.interactive import interact

        limit = options.max_tokens or (None if chats else _DEFAULT_TOKENS)
        interact(model, chat=chats, system=options.system, max_tokens=limit, **common)
        return
    limit = options.max_tokens or _DEFAULT_TOKENS
    request = _request(model, prompt, options.system, chats, max_tokens=limit, **common)
    engine = model.engine(max_length=len(request.prompt) + limit)
    if options.ids:
        stats = write_text(engine, request, io.StringIO())
        sys.stdout.write(" ".join(map(str, stats.generation.tokens)))
    else:
        stats = write_text(engine, request, sys.stdout, before="" if chats else prompt)
    sys.stdout.write("\n")
    sys.stdout.flush()
    print(stats.line(), file=sys.stderr)
    if stats.interrupted:
        raise KeyboardInterrupt


def _prompt(options: argparse.Namespace) -> str | None:
    """The prompt as given, or piped; None for a person at a terminal."""
    if options.text is not None and options.prompt is not None:
        raise FptqError("the prompt is given twice: leave out --prompt")
    given: str | None = options.text if options.text is not None else options.prompt
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    if sys.stdin is None:
        raise FptqError("there is no prompt: give one, or pipe it in")
    try:  # whatever the locale says
        piped = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise FptqError(
            f"standard input is not UTF-8 text ({error.reason}); give it as text"
        ) from error
    return piped.removesuffix("\n")  # the line end that echo and editors put


def _request(
    model: LanguageModel, prompt: str, system: str | None, chats: bool, **common: Any
) -> Request:
    from fptq_onnx.generation.engine import Request

    if not chats:
        return Request(model.encode(prompt), **common)
    messages = [] if system is None else [{"role": "system", "content": system}]
    return Request(model.encode_chat([*messages, {"role": "user", "content": prompt}]), **common)
