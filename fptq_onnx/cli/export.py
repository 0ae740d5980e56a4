"""`fptq-onnx export`: its options; and the export that `convert` makes first where needed."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fptq_onnx.cli.console import Printer
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.model_folder import hub_snapshot, model_name

_EXPORTERS = "what exports: genai (fused attention, the fastest), optimum or dynamo (genai)"


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="a Hugging Face folder, or a model on the hub: owner/name")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    add_exporter_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--verbose", action="store_true", help="show what the exporter prints")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads, 0 for ONNX Runtime's choice (0)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def add_exporter_option(parser: argparse.ArgumentParser) -> None:
    """Declare --exporter, for `export` and `convert`."""
    parser.add_argument("--exporter", default="genai", help=_EXPORTERS)


def run_export(options: argparse.Namespace) -> None:
    """Export, telling the steps.

    Raises:
        FptqError: see `export_model`.
    """
    from fptq_onnx.exporting.export_model import export_model

    say = Printer()
    export_model(
        options.model,
        options.output,
        exporter=options.exporter,
        overwrite=options.overwrite,
        threads=options.threads,
        quiet=options.quiet,
        verbose=options.verbose,
        say=say,
    )
    say(f"output       {options.output}")
    if say.failure is not None:
        raise FptqError(
            f"the model was written, but standard output failed: {say.failure.strerror}"
        )


@contextmanager
def onnx_of(
    options: argparse.Namespace, output: Path, *, say: Callable[[str], None]
) -> Iterator[Path]:
    """The ONNX model to convert: the one given, or an export that lasts as long as the block.

    Args:
        options: of `convert`; a Hugging Face folder is exported first.
        output: of the conversion; the export is kept beside it meanwhile, hidden.
        say: receives lines for people.

    Raises:
        FptqError: see `export_model`.
    """
    from fptq_onnx.exporting.hf_source import is_hf_folder

    model: Path = hub_snapshot(options.model)
    if not is_hf_folder(model):
        yield options.model
        return
    from fptq_onnx.exporting.export_model import export_model
    from fptq_onnx.model_io.output_folder import check_output

    if not options.dry_run:  # better refused now than after the export
        check_output(model, output, overwrite=options.overwrite)
    place = next(folder for folder in output.absolute().parents if folder.is_dir())
    try:
        work = tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".export", dir=place)
    except OSError as error:
        raise FptqError(f"cannot write to {place}: {error.strerror}") from error
    try:
        folder = Path(work) / model_name(model).split("/")[-1]
        export_model(
            str(model), folder, exporter=options.exporter, threads=options.threads,
            quiet=options.quiet, say=say,
        )  # fmt: skip
        yield folder
    finally:
        shutil.rmtree(work, ignore_errors=True)
