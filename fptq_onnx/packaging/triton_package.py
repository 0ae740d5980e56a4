"""For Triton: a model repository of its ONNX Runtime backend.

    models/NAME/config.pbtxt             models/NAME/1/   model.onnx, its data, the library
    models/NAME-portable/config.pbtxt    models/NAME-portable/1/   model.onnx, its data

Triton hands the library's name to ONNX Runtime as it is, so config.pbtxt needs the path that the
server sees. The data that both graphs read is one file with two names (hard links).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.save import MODEL_FILE
from fptq_onnx.packaging.converted_model import ConvertedModel
from fptq_onnx.packaging.library_file import copy_library
from fptq_onnx.packaging.manifest import write_manifest
from fptq_onnx.packaging.oldest_runtime import oldest_runtime
from fptq_onnx.packaging.package_parts import (
    copy_tokenizer_and_report,
    describe,
    load_graphs,
    write_licence,
    write_readme,
)
from fptq_onnx.packaging.triton_config import CONFIG_FILE, triton_config
from fptq_onnx.packaging.write_graphs import PORTABLE_FILE, SHARED_DATA, write_graphs

REPOSITORY = "models"
VERSION = "1"
_PORTABLE_END = "-portable"


def write_triton_package(
    converted: ConvertedModel,
    folder: Path,
    *,
    target: str,
    library: Path | None,
    fallback: bool,
    served_at: str,
) -> None:
    """Write the folder.

    Args:
        converted: any model.
        folder: empty.
        target: one of library_file.TARGETS.
        library: built for it; None for this installation's.
        fallback: whether a portable form is wanted, as a model of its own.
        served_at: where the server will see the repository, an absolute path.

    Raises:
        FptqError: a path that is not absolute, no library, no portable form, or a tensor that
            Triton cannot be told of.
        OSError: the disk is full or not writable.
    """
    if not served_at.startswith("/"):
        raise FptqError(f"--served-at must be an absolute path, got {served_at!r}")
    name = converted.name
    version = folder / REPOSITORY / name / VERSION
    version.mkdir(parents=True)
    copied = copy_library(target, library, version) if converted.needs_library else None
    has_portable = write_graphs(converted, version, fallback=fallback)
    load_graphs(version, portable=has_portable)
    if has_portable:
        portable = folder / REPOSITORY / f"{name}{_PORTABLE_END}" / VERSION
        _move_portable(version, portable)
        load_graphs(portable, portable=False)
        _write_config(portable, None, "the same model for any ONNX Runtime")
    seen = None
    if copied is not None:
        seen = str(PurePosixPath(served_at) / name / VERSION / copied.name)
    _write_config(version, seen, f"the model with ops of fptq-onnx, for {target}")
    copy_tokenizer_and_report(converted, folder)
    values = {"name": name, "target": target, "served_at": served_at}
    values["runtime"] = oldest_runtime(converted.main.model, portable=has_portable)
    if has_portable:
        values["portable"] = f"{name}{_PORTABLE_END}"
    write_readme(folder, "triton", values)
    write_licence(folder)
    at = f"{REPOSITORY}/{name}{_PORTABLE_END}/{VERSION}/{MODEL_FILE}" if has_portable else None
    write_manifest(folder, describe(converted, "triton", target, portable=at, library=copied))


def _move_portable(version: Path, place: Path) -> None:
    """Give the portable graph a folder of its own."""
    place.mkdir(parents=True)
    os.replace(version / PORTABLE_FILE, place / MODEL_FILE)
    data = f"{PORTABLE_FILE}.data"
    if (version / data).is_file():
        os.replace(version / data, place / data)
    if (version / SHARED_DATA).is_file():
        _link(version / SHARED_DATA, place / SHARED_DATA)


def _link(source: Path, place: Path, link: Callable[[Path, Path], None] = os.link) -> None:
    try:
        link(source, place)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, place)


def _write_config(version: Path, library: str | None, comment: str) -> None:
    loaded = load_model(version / MODEL_FILE, allow_quantized=True)
    text = triton_config(
        version.parent.name,
        loaded.inputs,
        loaded.outputs,
        library=library,
        comment=comment,
    )
    (version.parent / CONFIG_FILE).write_text(text, encoding="utf-8")
