"""`fptq-onnx bench`: its options, and its output."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a decoder: a folder or a .onnx file")
    parser.add_argument(
        "--vs", type=Path, nargs="+", default=[], metavar="OTHER",
        help="other models, measured in turn with it",
    )  # fmt: skip
    add_load_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    several: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "N"}
    parser.add_argument(
        "--prefill", default=[128, 512], help="tokens of a prompt (128 512)", **several
    )
    parser.add_argument(
        "--depth", default=[128], help="tokens before those decoded (128)", **several
    )
    parser.add_argument("--batch", default=[1], help="sequences decoded at once (1)", **several)
    parser.add_argument("--threads", default=[0], help="threads, 0 for the default (0)", **several)
    parser.add_argument("--steps", type=int, default=16, help="timed decode steps (16)")
    parser.add_argument("--rounds", type=int, default=3, help="all models in turn (3)")


def run_bench(options: argparse.Namespace) -> None:
    """Measure, print the table, write JSON.

    Raises:
        FptqError: a model cannot be measured; or a number is too small.
    """
    from fptq_onnx.bench_models import bench_models, entries_of
    from fptq_onnx.bench_probe import Load
    from fptq_onnx.bench_table import bench_table

    numbers = [*options.prefill, *options.depth, *options.batch, options.steps, options.rounds]
    if min(numbers) < 1:
        raise FptqError("--prefill, --depth, --batch, --steps and --rounds must be at least 1")
    if options.json is not None and not options.json.parent.is_dir():
        raise FptqError(
            f"no folder {options.json.parent} to write {options.json.name} into; make it first"
        )
    if options.json is not None and options.json.is_dir():
        raise FptqError(f"{options.json} is a folder: give the name of a file to write")
    load = Load(tuple(options.prefill), tuple(options.depth), tuple(options.batch), options.steps)
    result = bench_models(
        entries_of([options.model, *options.vs]), load,
        threads=tuple(dict.fromkeys(options.threads)), rounds=options.rounds, quiet=options.quiet,
    )  # fmt: skip
    if options.json is not None:
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print("\n".join(bench_table(result)))
