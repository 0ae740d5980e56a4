"""From a converted model to a package: prepared aside, checked, then put in its place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.model_folder import hub_repository
from fptq_onnx.output_folder import atomic_folder, check_output, explain_write_error
from fptq_onnx.packaging.archive import check_suffix, write_archive
from fptq_onnx.packaging.check_package import check_package
from fptq_onnx.packaging.converted_model import ConvertedModel, open_converted
from fptq_onnx.packaging.edge_package import write_edge_package
from fptq_onnx.packaging.genai_package import write_genai_package
from fptq_onnx.packaging.library_file import chosen_target
from fptq_onnx.packaging.manifest import MANIFEST_FILE
from fptq_onnx.packaging.triton_package import write_triton_package

KINDS = ("genai", "triton", "edge")


@dataclass(frozen=True)
class PackageOptions:
    """What is wanted.

    kind: one of KINDS.
    target: one of library_file.TARGETS; None for this machine.
    library: built for the target; None for this installation's.
    fallback: whether the package holds a portable form of the model.
    overwrite: replace an earlier package.
    served_at: where Triton will see its model repository.
    """

    kind: str
    target: str | None = None
    library: Path | None = None
    fallback: bool = True
    overwrite: bool = False
    served_at: str = "/models"


def package_model(
    model: Path, output: Path | None, options: PackageOptions, say: Callable[[str], None]
) -> Path:
    """Write a package.

    Args:
        model: a folder that convert wrote; never changed.
        output: a folder, for edge an archive; None for a name beside the model.
        options: what is wanted.
        say: receives lines for people.

    Returns:
        What was written.

    Raises:
        FptqError: anything a user can mend; one sentence says what and how.
    """
    if options.kind not in KINDS:
        raise FptqError(f"unknown kind of package {options.kind!r}: use {', '.join(KINDS)}")
    target = chosen_target(options.target)
    converted = open_converted(model)
    place = output or _default(converted, options.kind, target)
    if not converted.needs_library:
        say("note         the model has no ops of ours: it needs no library, and no fallback")
    if options.kind == "edge":
        _archive(converted, place, target, options)
    else:
        check_output(model, place, overwrite=options.overwrite, marker=MANIFEST_FILE)
        with atomic_folder(place) as work:
            _write(converted, work, target, options)
            check_package(work)
    return place


def _write(converted: ConvertedModel, work: Path, target: str, options: PackageOptions) -> None:
    common: dict[str, Any] = {
        "target": target,
        "library": options.library,
        "fallback": options.fallback,
    }
    if options.kind == "genai":
        write_genai_package(converted, work, **common)
    elif options.kind == "triton":
        write_triton_package(converted, work, served_at=options.served_at, **common)
    else:
        write_edge_package(converted, work, **common)


def _archive(converted: ConvertedModel, place: Path, target: str, options: PackageOptions) -> None:
    check_suffix(place)
    if place.resolve().is_relative_to(converted.path.resolve()):
        raise FptqError(f"the output {place} is inside the input: choose another with -o")
    if place.is_dir() or (place.exists() and not options.overwrite):
        raise FptqError(f"the output {place} exists: give --overwrite or another -o")
    if place.exists():
        check_package(place)  # only a package is replaced
    if not place.parent.is_dir():
        raise FptqError(f"no folder {place.parent} to write {place.name} into: make it first")
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{place.name}.", suffix=".partial", dir=place.parent
        ) as aside:
            files, packed = Path(aside) / "files", Path(aside) / place.name
            files.mkdir()
            _write(converted, files, target, options)
            write_archive(files, f"{converted.name}-{target}", packed)
            check_package(packed)
            os.replace(packed, place)
    except OSError as error:
        raise FptqError(explain_write_error(error, place)) from error


def _default(converted: ConvertedModel, kind: str, target: str) -> Path:
    end = f"{target}.tar.gz" if kind == "edge" else kind
    hub = hub_repository(converted.path) is not None  # no place to write
    place = Path.cwd() if hub else converted.path.resolve().parent
    return place / f"{converted.name}-{end}"
