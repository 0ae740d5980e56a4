"""`fptq-onnx serve`: its options, and what is said before the first request."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from fptq_onnx.errors import FptqError

KEY_VARIABLE = "FPTQ_API_KEY"
_MODULES = ("httptools", "prometheus_client", "starlette", "uvicorn")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a model folder with tokenizer.json")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port, 0 for any free one (8000)"
    )
    parser.add_argument(
        "--api-key", metavar="KEY",
        help=f"key that requests to /v1 must carry; safer in the variable {KEY_VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--model-name", metavar="NAME", help="name of the model in the API (its folder's name)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads, 0 for ONNX Runtime's choice (0)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-running",
        type=int,
        default=16,
        metavar="N",
        help="requests in the batch at most (16)",
    )
    limits.add_argument(
        "--max-waiting",
        type=int,
        default=128,
        metavar="N",
        help="requests that wait at most; others get 429 (128)",
    )
    limits.add_argument(
        "--max-length", type=int, metavar="TOKENS",
        help="tokens of prompt and answer together at most (the model's context)",
    )  # fmt: skip
    limits.add_argument(
        "--max-body",
        type=int,
        default=1 << 20,
        metavar="BYTES",
        help="size of a request at most (1 MiB)",
    )
    limits.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS",
        help="time for a request, waiting included (600)",
    )  # fmt: skip
    limits.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="SECONDS",
        help="time for running requests to finish after SIGTERM or Ctrl-C (30)",
    )  # fmt: skip


def run_serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        FptqError: the extra is not installed, an option is wrong, the address is taken, or see
            LanguageModel.open.
    """
    check_extra()
    from fptq_onnx.cli.console import Printer
    from fptq_onnx.serving.http_server import bind, is_loopback, serve, url
    from fptq_onnx.serving.open_service import open_service
    from fptq_onnx.serving.settings import ServerSettings

    given = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    # What a client sends is stripped too: a file's last line break is no part of a key.
    key = None if given is None else given.strip()
    settings = ServerSettings(
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        max_body=options.max_body,
        timeout=options.timeout,
        drain=options.drain_seconds,
        max_length=options.max_length,
        api_key=key,
    )
    if not 0 <= options.port < 1 << 16:
        raise FptqError(f"--port must be from 0 to 65535, got {options.port}")
    with bind(options.host, options.port) as bound:  # before the model: it may take a while
        service = open_service(
            options.model, settings, name=options.model_name, tokenizer=options.tokenizer,
            threads=options.threads or None,
        )  # fmt: skip
        if key is None and not is_loopback(bound):
            print(
                f"fptq-onnx: warning: anybody who reaches {url(bound)} can use the model: "
                f"set {KEY_VARIABLE}, or listen on 127.0.0.1",
                file=sys.stderr,
            )
        say = Printer()
        line = f"serving {service.name} on {url(bound)}"
        serve(service, bound, started=lambda: say(line))


def check_extra() -> None:
    """See that what serving needs is installed.

    Raises:
        FptqError: it is not.
    """
    missing = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    if missing:
        from fptq_onnx.runtime.install_advice import install_advice

        raise FptqError(
            f"serving needs {' and '.join(missing)}, not installed here: {install_advice('serve')}"
        )
