"""The model and its portable form in one folder; what both use is stored once.

    model.onnx       model.onnx.data       weights in the layout of our ops
    portable.onnx    portable.onnx.data    the same weights in MatMulNBits' layout
                     shared.onnx.data      what both read: embeddings, norms, rotary tables

The two layouts of a weight hold the same codes in another order, so these cannot be shared.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.model_io.save import MODEL_FILE, append_tensor, is_large, save_model
from fptq_onnx.packaging.converted_model import ConvertedModel
from fptq_onnx.passes import apply
from fptq_onnx.passes.make_portable import make_portable

PORTABLE_FILE = "portable.onnx"
SHARED_DATA = "shared.onnx.data"
_PIECE = 1 << 22


def write_graphs(converted: ConvertedModel, folder: Path, *, fallback: bool) -> bool:
    """Write the model, and its portable form if it needs one.

    Args:
        converted: stays as it is.
        folder: exists.
        fallback: whether a portable form is wanted.

    Returns:
        Whether one was written; a model without ops of ours is portable itself.

    Raises:
        FptqError: a portable form is wanted and cannot be made.
        OSError: the disk is full or not writable.
    """
    if not (fallback and converted.needs_library):
        _copy(converted.main, folder)
        return False
    main = converted.main.model.clone()
    if converted.portable is None:
        portable = converted.main.model.clone()
        apply(portable, [make_portable])
        portable.metadata_props["fptq.target"] = "matmulnbits"
    else:
        portable = converted.portable.model.clone()
    shared = dict(_same_tensors(main, portable))
    stored: dict[str, ir.ExternalTensor] = {}
    if shared:
        with open(folder / SHARED_DATA, "wb") as file:
            for name in shared.values():
                stored[name] = append_tensor(file, main.graph.initializers[name])
            file.flush()
            os.fsync(file.fileno())
    save_model(main, folder, stored=stored)
    of_portable = {name: stored[other] for name, other in shared.items()}
    save_model(portable, folder, file_name=PORTABLE_FILE, stored=of_portable)
    return True


def _copy(loaded: LoadedModel, folder: Path) -> None:
    for path in (loaded.file, *loaded.data_files):
        place = folder / path.relative_to(loaded.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    assert (folder / MODEL_FILE).is_file()  # open_converted loads a file of this name


def _same_tensors(main: ir.Model, portable: ir.Model) -> Iterator[tuple[str, str]]:
    """Large initializers of `portable`, each with one of `main` of the same bytes."""
    found = _large_externals(main)
    by_kind: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in found.items():
        by_kind.setdefault(_kind(tensor), []).append(name)
    digests: dict[str, bytes] = {}
    for name, tensor in _large_externals(portable).items():
        candidates = by_kind.get(_kind(tensor), [])
        same = next((c for c in candidates if _place(found[c]) == _place(tensor)), None)
        if same is None and candidates:
            mine = _digest(tensor)
            for candidate in candidates:
                if candidate not in digests:
                    digests[candidate] = _digest(found[candidate])
            same = next((c for c in candidates if digests[c] == mine), None)
        if same is not None:
            yield name, same


def _large_externals(model: ir.Model) -> dict[str, ir.ExternalTensor]:
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and is_large(value.const_value)
    }


def _kind(tensor: ir.ExternalTensor) -> tuple[object, ...]:
    return (tensor.dtype, tuple(tensor.shape.numpy()))


def _place(tensor: ir.ExternalTensor) -> tuple[object, ...]:
    return (os.path.realpath(tensor.path), tensor.offset or 0)


def _digest(tensor: ir.ExternalTensor) -> bytes:
    digest, left = hashlib.sha256(), tensor.nbytes
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()
