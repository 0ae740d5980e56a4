"""The files that a model's external weights are in: found, checked, and made plain for readers.

A model says where its weights are, and may come from anybody, so what it says is checked before
anything is opened. The rule is ONNX Runtime's (since 1.24.2), and its reason is who wrote what: a
location is written in the model, a link is in the file system. A location must be relative. The
file that it leads to, links followed, must be in the model's folder; or, for a plain location
without `..`, in the folder that the model file itself is in when links are followed, or in the
blobs of the hub cache that the folder is a snapshot of: there a link leads from the model's file
to where the weights are as well, so both come from one place. A link to anywhere else is refused:
an unpacked archive can hold one that points to a file of the user's that is none of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.downloaded_file import check_downloaded
from fptq_onnx.model_io.model_folder import hub_blobs

_WINDOWS_ROOT = re.compile(r"[A-Za-z]:|[\\/]")


class _CheckedTensor(ir.ExternalTensor):
    """A tensor whose file was checked here.

    onnx_ir refuses a file that has several names (hard links), as deduplicating tools make.
    """

    def _check_path_containment(self) -> None:
        return


@dataclass(frozen=True)
class ExternalData:
    """Where a model's external weights are.

    files: as they are named beside the model, without duplicates.
    folder: what locations in the loaded graph are relative to.
    as_named: whether ONNX Runtime finds the weights by the names in the model's file.
    """

    files: tuple[Path, ...]
    folder: Path
    as_named: bool


def locate_data(model: ir.Model, file: Path) -> ExternalData:
    """Check every reference to external data before anything maps it.

    Where ONNX Runtime would not find the data by itself (a link that leads out of the model's
    folder, a location with backslashes), the tensors are replaced by ones of plain locations,
    relative to a folder that holds all the files.

    Args:
        model: changed in place, see above.
        file: its .onnx file.

    Raises:
        FptqError: data missing, truncated, not downloaded, or outside.
    """
    places: dict[str, Path] = {}
    tensors = [one for one in tensors_of(model) if isinstance(one, ir.ExternalTensor)]
    for tensor in tensors:
        location = os.fspath(tensor.location)
        if location not in places:
            places[location] = find_data(file, location, tensor.name or "")
        _check_size(tensor, places[location])
    files = tuple(dict.fromkeys(places.values()))
    real = {location: path.resolve() for location, path in places.items()}
    inside = file.parent.resolve()
    as_named = all(
        (file.parent / location) == path and real[location].is_relative_to(inside)
        for location, path in places.items()
    )
    if as_named and all(path.stat().st_nlink == 1 for path in real.values()):
        return ExternalData(files, file.parent, as_named)
    if as_named:
        folder, names = file.parent, {location: location for location in places}
    else:
        folder = Path(os.path.commonpath([path.parent for path in real.values()]))
        names = {place: path.relative_to(folder).as_posix() for place, path in real.items()}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _moved(value.const_value, names, folder)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR:
                    held = attribute.as_tensor()
                    if isinstance(held, ir.ExternalTensor):
                        node.attributes[name] = ir.AttrTensor(name, _moved(held, names, folder))
    return ExternalData(files, folder, as_named)


def find_data(file: Path, location: str, weight: str) -> Path:
    """The data file that a location names, by the rule of this module's text.

    Args:
        file: the .onnx file.
        location: as the model says; backslashes separate folders where no file has that very name,
            and what Windows put in a folder that is not there is looked for beside the model.
        weight: whose, for messages.

    Returns:
        The path beside the model; links are not followed in it.

    Raises:
        FptqError: missing, not downloaded, or outside.
    """
    folder = file.parent
    outside = (
        f"refused: the weight {weight!r} points to external data outside the model's "
        f"folder ({location}"
    )
    if not location or _WINDOWS_ROOT.match(location) or os.path.isabs(location):
        raise FptqError(outside + ")")
    name = location
    if "\\" in name and not (folder / name).exists():
        name = name.replace("\\", "/")
        climbs = os.pardir in Path(name).parts
        if not climbs and not os.path.lexists(folder / name):
            name = Path(name).name
    path = folder / name
    climbs = os.pardir in Path(name).parts
    allowed = [folder.resolve()]
    if not climbs:
        allowed.append(file.resolve().parent)
        if (blobs := hub_blobs(folder)) is not None:
            allowed.append(blobs.resolve())
    real = path.resolve()
    if not any(real.is_relative_to(place) for place in allowed):
        linked = path.is_symlink() and not climbs
        raise FptqError(
            outside + (", a symbolic link): copy the files themselves, cp -rL" if linked else ")")
        )
    check_downloaded(path)
    if not path.is_file():
        raise FptqError(f"external data file {path} is missing: copy it next to the model")
    return path


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All tensors a model holds: initializers and tensor attributes, subgraphs included."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _check_size(tensor: ir.ExternalTensor, path: Path) -> None:
    size, offset = path.stat().st_size, tensor.offset or 0
    length = tensor.nbytes if tensor.length is None else tensor.length
    if length < tensor.nbytes or offset < 0 or offset + tensor.nbytes > size:
        raise FptqError(
            f"external data file {path} is truncated: the weight {tensor.name!r} ends at byte "
            f"{offset + tensor.nbytes}, the file has {size}; copy or export it again"
        )


def _moved(tensor: ir.ExternalTensor, names: dict[str, str], folder: Path) -> ir.ExternalTensor:
    return _CheckedTensor(
        names[os.fspath(tensor.location)],
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        base_dir=folder,
    )
