"""`fptq-onnx compare`: its options, and its output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fptq_onnx.errors import FptqError


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="a float decoder: a folder or a .onnx file")
    parser.add_argument(
        "--data", type=Path, required=True, help="text to evaluate on: .txt or .jsonl"
    )
    parser.add_argument(
        "--text-field", default="text", help="field of a .jsonl object that holds the text (text)"
    )
    parser.add_argument(
        "--recipes",
        help="recipes, separated by commas (fptq,paper,w4a8-static,gptq,w8a8,smoothquant,fp16)",
        default="fptq,paper,w4a8-static,gptq,w8a8,smoothquant,fp16",
    )
    parser.add_argument(
        "--calibration",
        default="generated",
        help="calibration samples: generated (the model writes them), random, or a .txt or .jsonl "
        "file (generated)",
    )
    parser.add_argument(
        "--max-samples", type=int, default=48, metavar="N", help="calibration samples at most (48)"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or its folder")
    parser.add_argument(
        "--max-windows",
        type=int,
        default=80,
        metavar="N",
        help="windows and LAMBADA passages at most (80)",
    )
    parser.add_argument(
        "--window", type=int, default=256, metavar="N", help="tokens in a window (256)"
    )
    parser.add_argument(
        "--prefill", type=int, default=128, metavar="N", help="prompt length to time (128)"
    )
    parser.add_argument(
        "--decode", type=int, default=32, metavar="N", help="timed decode steps (32)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timing rounds over all models (3)"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to keep the converted models in")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page with plots")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads, 0 for ONNX Runtime's choice (0)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def run_compare(options: argparse.Namespace) -> None:
    """Compare, print the table, write JSON and page.

    Raises:
        FptqError: see compare_models; or a folder to write into does not exist.
    """
    from fptq_onnx.benchmarking.compare_recipes import CompareSettings, compare_models
    from fptq_onnx.benchmarking.comparison_page import compare_page
    from fptq_onnx.benchmarking.comparison_table import compare_table
    from fptq_onnx.calibration.samples import Samples
    from fptq_onnx.evaluation.settings import TASKS, EvalSettings
    from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer

    for file in (options.json, options.html):
        if file is not None and not file.parent.is_dir():  # known now rather than after the work
            raise FptqError(f"no folder {file.parent} to write {file.name} into; make it first")
        if file is not None and file.is_dir():
            raise FptqError(f"{file} is a folder: give the name of a file to write")
    settings = CompareSettings(
        recipes=tuple(dict.fromkeys(options.recipes.split(","))),
        evaluation=EvalSettings(
            data=options.data,
            text_field=options.text_field,
            tasks=TASKS,
            max_windows=options.max_windows,
            window=options.window,
            tokenizer_folder=options.tokenizer and folder_of_tokenizer(options.tokenizer),
        ),
        samples=Samples(
            options.calibration,
            options.max_samples,
            text_field=options.text_field,
            tokenizer=options.tokenizer,
        ),
        prefill=options.prefill,
        decode=options.decode,
        rounds=options.rounds,
        threads=options.threads,
    )
    comparison = compare_models(
        options.model,
        settings,
        keep=options.output,
        overwrite=options.overwrite,
        quiet=options.quiet,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if options.json is not None:
        text = json.dumps(comparison.to_dict(), indent=2, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.html is not None:
        options.html.write_text(compare_page(comparison), encoding="utf-8")
    print("\n".join(compare_table(comparison)))
