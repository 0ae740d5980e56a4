"""Perplexity, KL divergence and top-1 agreement of converted models against their original.

    python benchmarks/accuracy.py ORIGINAL CONVERTED... --text valid.txt --json accuracy.json

The protocol: the first --windows windows of --length tokens of the text, BOS in front of each
document; every window is fed whole. Perplexity is over the next-token predictions inside each
window; KL is the mean over all positions of KL(original || converted) in nats; top-1 is the share
of positions where both have the same most likely token. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.perplexity import compare, perplexity
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.runtime.decoder import Decoder, open_decoder
from fptq_onnx.text.windows import first_windows


def main(arguments: list[str]) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("original", type=Path, help="folder or .onnx file")
    parser.add_argument("converted", type=Path, nargs="*", help="folders or .onnx files")
    parser.add_argument("--text", type=Path, required=True, help=".txt or .jsonl")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--length", type=int, default=256, help="tokens in a window")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the metrics here as well")
    options = parser.parse_args(arguments)
    if options.windows < 1 or options.length < 2:
        parser.error("--windows must be at least 1 and --length at least 2")
    try:
        report = measure(options)
    except FptqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all models; return settings and metrics as plain data.

    Raises:
        FptqError: a model or the text cannot be used.
    """
    original = open_decoder(options.original, threads=options.threads)
    windows: list[NDArray[np.int64]] = first_windows(
        options.text,
        find_model_file(options.original).parent,
        count=options.windows,
        length=options.length,
        text_field=options.text_field,
        vocab_size=original.io.vocab_size,
    )
    models = [_row(options.original, {"perplexity": perplexity(original, windows)})]
    for path in options.converted:
        candidate: Decoder = open_decoder(path, threads=options.threads)
        models.append(_row(path, compare(original, candidate, windows).to_dict()))
    return {
        "text": options.text.name,
        "windows": len(windows),
        "length": options.length,
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
        "models": models,
    }


def _row(path: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    file = find_model_file(path)
    name = file.parent.name if path.is_dir() else path.name
    return {"model": name or str(path), **metrics}


def as_table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['text']}, first {report['windows']} windows of {report['length']} tokens, "
        f"onnxruntime {report['onnxruntime']} on {report['machine']}",
        "",
        "| model | perplexity | KL (nats) | top-1 |",
        "|---|---|---|---|",
    ]
    for row in report["models"]:
        kl = f"{row['kl']:.5f}" if "kl" in row else "-"
        top1 = f"{row['top1']:.4f}" if "top1" in row else "-"
        lines.append(f"| {row['model']} | {row['perplexity']:.4f} | {kl} | {top1} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
