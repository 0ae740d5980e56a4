"""The export: source -> ONNX in a work folder -> compared with torch -> side files -> renamed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fptq_onnx import __version__
from fptq_onnx.exporting.check_export import check_export
from fptq_onnx.exporting.exporters import find_exporter
from fptq_onnx.exporting.hf_source import check_hf_source
from fptq_onnx.exporting.run_worker import run_worker
from fptq_onnx.model_load import load_model
from fptq_onnx.output_folder import atomic_folder, check_output
from fptq_onnx.report import human_bytes
from fptq_onnx.side_files import copy_files, side_files

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class Export:
    """What was exported; also the content of export.json.

    version: of this tool.
    source: as the user named it.
    architecture: the torch class.
    exporter: package and version.
    bytes: of the ONNX model with its data.
    max_rel_diff: largest difference from the torch model over its largest output.
    """

    version: str
    source: str
    architecture: str
    exporter: str
    bytes: int
    max_rel_diff: float


def export_model(
    source: str,
    output: Path,
    *,
    exporter: str = "genai",
    overwrite: bool = False,
    threads: int = 0,
    quiet: bool = True,
    verbose: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Export:
    """Export a torch model of Hugging Face's transformers to ONNX in float32.

    Args:
        source: a folder with config.json and weights, or a name on the hub.
        output: the folder to write: model.onnx, its data, tokenizer, configs, export.json.
        exporter: genai, optimum or dynamo.
        overwrite: replace an output folder that an export wrote before.
        threads: intra-op threads of the comparison, 0 lets ONNX Runtime choose.
        quiet: show no progress on stderr.
        verbose: show what the exporter prints.
        say: receives lines for people.

    Returns:
        An Export.

    Raises:
        FptqError: anything a user can mend; one sentence says what and how.
    """
    check_hf_source(source)
    chosen = find_exporter(exporter)
    check_output(Path(source), output, overwrite=overwrite, marker=EXPORT_FILE)
    say(f"exporting    {source} with {chosen.version()}")
    with atomic_folder(output) as work, tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.npz"
        result = run_worker(
            {
                "source": source,
                "exporter": exporter,
                "folder": str(work),
                "reference": str(reference),
            },
            Path(scratch),
            work,
            quiet=quiet,
            verbose=verbose,
        )
        copy_of_source(Path(result["folder"]), work)
        loaded = load_model(work)
        say(
            f"exported     {result['architecture']}: {len(loaded.model.graph)} nodes, opset "
            f"{loaded.model.opset_imports.get('', 0)}, {human_bytes(loaded.bytes)}"
        )
        causal = bool(result["causal"])
        difference = check_export(
            loaded.file, reference, causal=causal, output=result["output"], threads=threads
        )
        say(f"check        differs from torch by {difference:.1e} of the largest output")
        if not (work / "tokenizer.json").is_file():
            say("note         the source has no tokenizer.json: put one beside the model")
        export = Export(
            __version__,
            source,
            result["architecture"],
            chosen.version(),
            loaded.bytes,
            difference,
        )
        text = json.dumps(asdict(export), indent=2, allow_nan=False)
        (work / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return export


def copy_of_source(source: Path, folder: Path) -> None:
    """Tokenizer and configs as the model came with them; exporters write them anew, or not."""
    copy_files(side_files(source), source, folder)
