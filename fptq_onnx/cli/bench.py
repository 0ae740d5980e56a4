"""`fptq-onnx bench`: its options, and its output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    from fptq_onnx.benchmarking.worker import Load

_PREFILLS, _DEPTH = (128, 512), 128  # tokens, unless others are given
_ANY = 1 << 30  # the room in a model that says nothing of a context


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a decoder: a folder or a .onnx file")
    parser.add_argument(
        "--vs", type=Path, nargs="+", default=[], metavar="OTHER",
        help="other models to compare with, measured in turn",
    )  # fmt: skip
    add_load_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    several: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "N"}
    parser.add_argument(
        "--prefill",
        help="prompt lengths to time, in tokens (128 512, as far as they fit the context)",
        **several,
    )
    parser.add_argument(
        "--depth",
        help="tokens in the KV cache before decoding starts (128, if that fits)",
        **several,
    )
    parser.add_argument("--batch", default=[1], help="batch sizes to decode with (1)", **several)
    parser.add_argument(
        "--threads", default=[0], help="thread counts, 0 for ONNX Runtime's choice (0)", **several
    )
    parser.add_argument(
        "--steps", type=int, default=16, metavar="N", help="timed decode steps (16)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="rounds over all models (3)"
    )


def load_of(options: argparse.Namespace, models: Sequence[Path]) -> Load:
    """What is measured, with the lengths that nobody gave chosen to fit into every context.

    Raises:
        FptqError: a number is too small, or there is no model.
    """
    from fptq_onnx.benchmarking.worker import Load
    from fptq_onnx.model_io.hf_config import find_model_file, read_special_ids

    given = [*(options.prefill or ()), *(options.depth or ()), *options.batch]
    if min(*given, options.steps, options.rounds) < 1:
        raise FptqError("--prefill, --depth, --batch, --steps and --rounds must be at least 1")
    contexts = [read_special_ids(find_model_file(model).parent).context_length for model in models]
    room = min((context for context in contexts if context is not None), default=_ANY)
    prefill = options.prefill or [length for length in _PREFILLS if length <= room] or [room]
    depth = options.depth or [max(1, min(_DEPTH, room - options.steps - 1))]
    return Load(tuple(prefill), tuple(depth), tuple(options.batch), options.steps)


def run_bench(options: argparse.Namespace) -> None:
    """Measure, print the table, write JSON.

    Raises:
        FptqError: a model cannot be measured; or a number is too small.
    """
    from fptq_onnx.benchmarking.benchmark import bench_models, entries_of
    from fptq_onnx.benchmarking.benchmark_table import bench_table

    load = load_of(options, [options.model, *options.vs])
    if options.json is not None and not options.json.parent.is_dir():
        raise FptqError(
            f"no folder {options.json.parent} to write {options.json.name} into; make it first"
        )
    if options.json is not None and options.json.is_dir():
        raise FptqError(f"{options.json} is a folder: give the name of a file to write")
    result = bench_models(
        entries_of([options.model, *options.vs]), load,
        threads=tuple(dict.fromkeys(options.threads)), rounds=options.rounds, quiet=options.quiet,
    )  # fmt: skip
    if options.json is not None:
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print("\n".join(bench_table(result)))
