"""What every package has: side files, licence, README, and graphs that were loaded once."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.genai_config import GENAI_CONFIG
from fptq_onnx.model_save import MODEL_FILE
from fptq_onnx.output_folder import REPORT_FILE
from fptq_onnx.packaging.converted_model import ConvertedModel
from fptq_onnx.packaging.library_file import needed_glibc
from fptq_onnx.packaging.oldest_runtime import oldest_runtime
from fptq_onnx.packaging.write_graphs import PORTABLE_FILE
from fptq_onnx.session import open_session
from fptq_onnx.side_files import copy_files, side_files

LICENCE_FILE = "LICENSE"
README_FILE = "README.md"


def copy_tokenizer_and_report(converted: ConvertedModel, folder: Path) -> None:
    """Tokenizer, configs and report.json, but for genai_config.json, which names other files.

    Raises:
        OSError: the disk is full or not writable.
    """
    source = converted.main.folder
    names = [name for name in side_files(source) if name != GENAI_CONFIG]
    names += [REPORT_FILE] if (source / REPORT_FILE).is_file() else []
    copy_files(names, source, folder)


def write_licence(folder: Path) -> None:
    """The licence of the library and of the code in a package.

    Raises:
        FptqError: this installation has none.
        OSError: the disk is full or not writable.
    """
    text = None
    try:
        text = importlib.metadata.distribution("fptq-onnx").read_text("licenses/LICENSE")
    except importlib.metadata.PackageNotFoundError:
        pass
    checkout = Path(__file__).resolve().parents[2] / LICENCE_FILE
    if text is None and checkout.is_file():
        text = checkout.read_text(encoding="utf-8")
    if text is None:
        raise FptqError("this installation of fptq-onnx has no LICENSE file: install it again")
    (folder / LICENCE_FILE).write_text(text, encoding="utf-8")


def write_readme(folder: Path, kind: str, values: Mapping[str, str]) -> None:
    """README.md from readmes/`kind`.md, with each {{key}} filled in.

    A section between {{if key}} and {{end}} lines stays only if values has the key.

    Raises:
        OSError: the disk is full or not writable.
    """
    text = resource(f"readmes/{kind}.md").read_text(encoding="utf-8")
    kept, shown = [], True
    for line in text.splitlines():
        if line.startswith("{{if "):
            shown = line[5:].rstrip("}") in values
        elif line == "{{end}}":
            shown = True
        elif shown:
            kept.append(line)
    filled = "\n".join(kept) + "\n"
    for key, value in values.items():
        filled = filled.replace("{{" + key + "}}", value)
    (folder / README_FILE).write_text(filled, encoding="utf-8")


def resource(name: str) -> Path:
    """A file or folder that is part of this package."""
    return Path(str(importlib.resources.files("fptq_onnx") / "packaging" / name))


def load_graphs(folder: Path, *, portable: bool) -> None:
    """Load what was written in ONNX Runtime, with this machine's own library.

    Raises:
        FptqError: ONNX Runtime refuses it, or this installation has no library.
    """
    for name in (MODEL_FILE, PORTABLE_FILE)[: 1 + portable]:
        open_session(folder / name, threads=1)


def describe(
    converted: ConvertedModel,
    kind: str,
    target: str,
    *,
    portable: str | None,
    library: Path | None,
) -> dict[str, Any]:
    """What manifest.json says of a package.

    Args:
        converted: what is in it.
        kind: genai, triton or edge.
        target: the machine it is for.
        portable: path of the portable graph in the package.
        library: the custom-op library, where there is one.
    """
    report = converted.report
    return {
        "name": converted.name,
        "for": kind,
        "target": target,
        "onnxruntime": f">={oldest_runtime(converted.main.model, portable=portable is not None)}",
        "glibc": needed_glibc(library) if library is not None else None,
        "portable": portable,
        "model": {
            key: report.get(key) for key in ("version", "target", "bits_per_weight", "source")
        },
    }
