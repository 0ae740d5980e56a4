"""`fptq-onnx eval`: its options, and its output."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fptq_onnx.errors import FptqError


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, help="any ONNX decoder: a folder or a .onnx file")
    parser.add_argument(
        "--reference", type=Path, help="the original model, for KL and top-1 agreement"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="text: .txt (documents separated by lines <|endoftext|>) or .jsonl",
    )
    parser.add_argument(
        "--text-field", default="text", help="field of a .jsonl object that holds the text (text)"
    )
    parser.add_argument(
        "--tasks",
        help="perplexity, lastword (LAMBADA), or both with a comma (perplexity; for .jsonl both)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    parser.add_argument(
        "--max-windows", type=int, help="windows, and LAMBADA passages, at most (all)"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=256,
        help="tokens in a window, within the model's context (256)",
    )
    parser.add_argument("--no-bos", action="store_true", help="texts alone, without BOS or EOS")
    parser.add_argument(
        "--json", metavar="FILE", help="write all results as JSON; - for standard output"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads, 0 for ONNX Runtime's choice (0)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def run_eval(options: argparse.Namespace) -> None:
    """Evaluate, then print the table or JSON.

    Raises:
        FptqError: see `evaluate_model`; or the JSON's folder does not exist.
    """
    from fptq_onnx.evaluation.evaluate import evaluate_model
    from fptq_onnx.evaluation.settings import EvalSettings
    from fptq_onnx.evaluation.table import evaluation_table
    from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer

    file = None if options.json in (None, "-") else Path(options.json)
    if file is not None and not file.parent.is_dir():  # known now rather than after the work
        raise FptqError(f"no folder {file.parent} to write {file.name} into; make it first")
    if file is not None and file.is_dir():
        raise FptqError(f"{file} is a folder: give the name of a file to write")
    settings = EvalSettings(
        data=options.data,
        text_field=options.text_field,
        tasks=tuple(options.tasks.split(",")) if options.tasks is not None else (),
        max_windows=options.max_windows,
        window=options.window,
        bos=not options.no_bos,
        tokenizer_folder=options.tokenizer and folder_of_tokenizer(options.tokenizer),
    )
    evaluation = evaluate_model(
        options.model,
        settings,
        reference=options.reference,
        threads=options.threads,
        quiet=options.quiet,
    )
    text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")
    print(text if options.json == "-" else "\n".join(evaluation_table(evaluation)))
