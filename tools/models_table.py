"""Convert a folder of exports and print the results as a table: docs/models.md is its output.

    python tools/models_table.py EXPORTS... --config NAME=CONFIG... -o docs/models.md

EXPORTS holds a folder per export, called MODEL-EXPORTER... (llama-optimum); make_exports.py makes
such folders. Each is converted with the default recipe to all targets, and compared with
MatMulNBits, rounded to nearest in blocks of 128, of the same graph: KL and top-1 over windows of
random tokens, or of a text for trained models.
What linears there ought to be is counted from a Hugging Face configuration (module_tree.py):
the export's own config.json, that of the same model by another exporter, or --config. The folds are
checked by writing the equalized model in floats.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from export_checks import ENOUGH_FLOAT, ENOUGH_KL, Row, check_numbers, check_structure
from module_tree import ModuleTree, module_tree, read_config
from numpy.typing import NDArray

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import first_windows

NOT_EXPORTED = "not-exported.json"  # make_exports.py writes it
_MOST_NAMES = 16  # in a list
EXPORTERS = ("genai", "optimum", "dynamo")


def exporter_of(name: str) -> tuple[str, str]:
    """'llama-tied-genai-shared' -> model 'llama-tied', exporter 'genai-shared'."""
    for exporter in EXPORTERS:
        model, found, rest = name.partition(f"-{exporter}")
        if found:
            return model, exporter + rest
    return name, "-"


def find_tree(folder: Path, given: dict[str, str]) -> ModuleTree:
    """The module tree of an export, from the best configuration there is.

    Raises:
        SystemExit: there is none.
    """
    model, _ = exporter_of(folder.name)
    siblings = sorted(folder.parent.glob(f"{model}-*/config.json"))
    named = [given[name] for name in (folder.name, model) if name in given]
    files = [folder / "config.json", *siblings, folder / "genai_config.json"]
    choices = [*named, *(str(file) for file in files if file.is_file())]
    if not choices:
        raise SystemExit(f"nothing tells what {folder.name} is: give --config {folder.name}=...")
    return module_tree(read_config(choices[0]))


def windows_for(
    folder: Path, options: argparse.Namespace, vocab: int
) -> tuple[list[NDArray[np.int64]], str]:
    """The windows to compare on, and a word for what they are."""
    prefix, _, file = options.text.partition("=")
    if file and folder.name.startswith(prefix):
        return first_windows(
            Path(file), options.tokenizer or folder, count=options.windows, length=options.length
        ), "text"
    rng = np.random.default_rng(1)
    drawn = rng.integers(3, vocab, (options.windows, options.length))
    return [row.astype(np.int64) for row in drawn], "random"


def as_page(rows: Sequence[tuple[Row, str]], options: argparse.Namespace) -> str:
    """The page of docs."""
    lines = [
        "# Models and exporters",
        "",
        f"{len(rows)} exports, converted with the default recipe and compared with ONNX Runtime's "
        f"own MatMulNBits. Printed by `tools/models_table.py` with ONNX Runtime "
        f"{onnxruntime.__version__} on {platform.machine()}. Calibrated on {options.samples} "
        f"samples of {options.length} tokens that the model generates (random tokens without a KV "
        f"cache). "
        f"All models but tinystories have two layers of random weights; "
        f"`tools/make_exports.py` makes most of them{_made_by(options.exports)}.",
        "",
        "* modules covered: linears in Hugging Face's module tree that are quantized; found: "
        "linears in the graph, where exporters fuse or split them.",
        "* norms: inputs of q/k/v, gate/up, fc1 and the head whose smoothing scales fold into a "
        "norm; columns: inputs of o, down and fc2 that fold into the linear before.",
        "* float: largest difference of the logits (or hidden states) of the float model after "
        "folding, over the largest logit.",
        f"* KL in nats and top-1 agreement with the float model: of target custom, and of "
        f"MatMulNBits (round to nearest, groups of 128, accuracy level 4) of the same graph; over "
        f"{options.windows} windows of {options.length} random tokens, for tinystories of text.",
        "* Encoders without a head have no top-1. In place of KL they show the sum of the squared "
        "differences of `last_hidden_state` over the sum of its squares. Only optimum exports "
        "encoders.",
        "",
        "| model | exporter | modules covered | found | norms | columns | float | KL | "
        "KL MatMulNBits | ratio | top-1 | top-1 MatMulNBits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_table_row(row) for row, _ in rows]
    lines += ["", "All three targets load and run in ONNX Runtime for every export.", ""]
    lines += ["Left alone:", ""]
    lines += [f"* {text}" for text in _left_alone([row for row, _ in rows])]
    if any(row.stock_by_us for row, _ in rows):
        names = ", ".join(row.name for row, _ in rows if row.stock_by_us)
        lines += ["", f"ONNX Runtime's quantizer skips Gemm. For {names} its column shows the same "
                  "rounding of all linears by the target matmulnbits."]  # fmt: skip
    missing = dict(_not_exported(options.exports))
    if missing:
        lines += ["", "Not exported, with the exporter's reason:", ""]
        lines += [f"* {name}: {reason}" for name, reason in sorted(missing.items())]
    problems = [f"* {row.name}: {text}" for row, _ in rows for text in row.problems]
    bounds = (
        f"Checked: every module is covered once with its shape, nothing else is taken for a "
        f"linear, every input after a norm folds (except post-norm), float is within "
        f"{ENOUGH_FLOAT:g}, KL is within {ENOUGH_KL:g} times that of MatMulNBits."
    )
    lines += ["", bounds, ""]
    lines += ["Failed:", "", *problems] if problems else ["All checks pass."]
    return "\n".join(lines) + "\n"


def _table_row(row: Row) -> str:
    model, exporter = exporter_of(row.name)
    assert row.ours is not None and row.stock is not None
    cells = (
        model, exporter, f"{row.covered} of {row.tree.count}", row.linears,
        "{} of {}".format(*row.norm_folds), "{} of {}".format(*row.column_folds),
        f"{row.float_difference:.1e}", f"{row.ours.error:.4f}", f"{row.stock.error:.4f}",
        f"{row.ours.error / row.stock.error:.2f}", _share(row.ours.top1), _share(row.stock.top1),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _made_by(folders: Sequence[Path]) -> str:
    """The versions of the exporters that `fptq-onnx export` called."""
    records = (file for folder in folders for file in folder.glob("*/export.json"))
    found = {json.loads(file.read_text(encoding="utf-8"))["exporter"] for file in records}
    return f" (by {', '.join(sorted(found))})" if found else ""


def _not_exported(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """What make_exports.py could not make, and why."""
    for folder in folders:
        if (folder / NOT_EXPORTED).is_file():
            failed: dict[str, str] = json.loads((folder / NOT_EXPORTED).read_text())
            # What to do instead is for the user of the command.
            yield from ((name, why.partition(": try ")[0]) for name, why in failed.items())


def _left_alone(rows: Sequence[Row]) -> list[str]:
    """Each reason once, with the exports it holds for, or how many there are."""
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        for reason, count in row.others.items():
            found.setdefault(f"not a linear: {reason}", []).append((row.name, count))
        for reason, count in row.unfolded.items():
            found.setdefault(f"not folded: {reason}", []).append((row.name, count))
    return [f"{reason} ({_holders(holders)})" for reason, holders in found.items()]


def _holders(holders: Sequence[tuple[str, int]]) -> str:
    if len(holders) <= _MOST_NAMES:
        return ", ".join(f"{name} {count}" for name, count in holders)
    counts = [count for _, count in holders]
    least, most = min(counts), max(counts)
    each = str(most) if least == most else f"{least} to {most}"
    return f"{each} in each of {len(holders)} exports"


def measure(folder: Path, given: dict[str, str], options: argparse.Namespace) -> tuple[Row, str]:
    """One export: its row, and what its windows are.

    Raises:
        FptqError: it cannot be converted.
    """
    tree = find_tree(folder, given)
    row = check_structure(folder, tree)
    vocabulary = tree.vocabulary if tree.encoder else open_decoder(folder).io.vocab_size
    windows, kind = windows_for(folder, options, vocabulary or 256)
    check_numbers(row, folder, windows, Samples(max_samples=options.samples,
                                                max_seq_len=options.length))  # fmt: skip
    print(_table_row(row), *row.problems, sep="\n", file=sys.stderr, flush=True)
    return row, kind


def main(arguments: list[str]) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "exports", type=Path, nargs="+", help="folders of exports; of one name the first counts"
    )
    parser.add_argument("--config", action="append", default=[], metavar="NAME=FILE|TYPE:LAYERS")
    parser.add_argument("--only", nargs="+", default=[], help="names of exports")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens in a sample or window")
    parser.add_argument("--text", default="", metavar="PREFIX=FILE", help="for trained models")
    parser.add_argument("--tokenizer", type=Path, help="a folder, for exports without one")
    parser.add_argument("--rows", type=Path, help="measured before; what is measured is added")
    parser.add_argument("-o", "--output", type=Path, help="write the page here as well")
    options = parser.parse_args(arguments)
    given = dict(text.split("=", 1) for text in options.config)
    found: dict[str, Path] = {}  # of the same name, the one of the first folder
    for exports in options.exports:
        for path in sorted(exports.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                found.setdefault(path.name, path)
    folders = sorted(found.values(), key=lambda path: exporter_of(path.name))
    known: dict[str, tuple[Row, str]] = {}
    if options.rows is not None and options.rows.is_file():
        known = pickle.loads(options.rows.read_bytes())
    for folder in folders:
        if folder.name in known or (options.only and folder.name not in options.only):
            continue
        try:
            known[folder.name] = measure(folder, given, options)
        except FptqError as error:
            print(f"error: {folder.name}: {error}", file=sys.stderr)
            return 2
        if options.rows is not None:
            options.rows.write_bytes(pickle.dumps(known))
    rows = [known[folder.name] for folder in folders if folder.name in known]
    page = as_page(rows, options)
    print(page)
    if options.output is not None:
        options.output.write_text(page, encoding="utf-8")
    return 1 if any(row.problems for row, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
