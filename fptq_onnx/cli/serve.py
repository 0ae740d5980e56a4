"""`fptq-onnx serve`: its options, and what is said before the first request."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.install_advice import install_advice

KEY_VARIABLE = "FPTQ_API_KEY"
_MODULES = ("httptools", "prometheus_client", "starlette", "uvicorn")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a model folder with tokenizer.json")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (8000)")
    parser.add_argument(
        "--api-key", metavar="KEY",
        help=f"asked for on /v1; better given in the environment, as {KEY_VARIABLE}",
    )  # fmt: skip
    parser.add_argument("--model-name", help="what clients call the model (its folder's name)")
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 for the default")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-running", type=int, default=16, help="requests generated at the same time (16)"
    )
    limits.add_argument(
        "--max-waiting", type=int, default=128, help="requests that wait, others get 429 (128)"
    )
    limits.add_argument(
        "--max-length", type=int, metavar="TOKENS",
        help="prompt and answer together at most (the model's context)",
    )  # fmt: skip
    limits.add_argument(
        "--max-body", type=int, default=1 << 20, metavar="BYTES", help="of a request (1 MiB)"
    )
    limits.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS",
        help="for a request, waiting included (600)",
    )  # fmt: skip
    limits.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="SECONDS",
        help="that running requests have to end after SIGTERM or Ctrl-C (30)",
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
        raise FptqError(
            f"serving needs {' and '.join(missing)}, not installed here: {install_advice('serve')}"
        )
