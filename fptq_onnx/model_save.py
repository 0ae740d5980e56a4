"""Write a model as model.onnx + model.onnx.data, streaming, with aligned weights.

ONNX Runtime maps the data file, so a tensor's alignment in memory is its alignment in the file, and
a weight stored in the kernel's layout is used where it lies. Tensors are written in the order of
the graph: pages are then read in the order they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from fptq_onnx.equal_tensors import EqualTensors

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# Small tensors (shapes, axes, scalars) stay in the model file, where shape inference can see them.
_SMALLEST_EXTERNAL = 1024
_CACHE_LINE = 64
_PAGE = 4096
_COPY_BYTES = 1 << 22

Tracker = Callable[[Iterable[ir.Value], int], Iterator[ir.Value]]


def save_model(
    model: ir.Model,
    folder: Path,
    track: Tracker = lambda items, _: iter(items),
    *,
    file_name: str = MODEL_FILE,
    stored: Mapping[str, ir.ExternalTensor] | None = None,
) -> None:
    """Write the model into `folder`; afterwards its initializers refer to the written data.

    Args:
        model: its initializers are replaced by references to the new data file; those of equal
            bytes become one.
        folder: exists; gets the model file and, when there are large tensors, its .data.
        track: wraps the iteration over large initializers to show progress.
        file_name: of the model file.
        stored: initializers of the main graph that another file in `folder` holds already.

    Raises:
        OSError: the disk is full or not writable.
    """
    large: list[ir.Value] = []
    kept = stored or {}
    for name, reference in kept.items():
        model.graph.initializers[name].const_value = reference
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if graph is model.graph and value.name in kept:
                continue
            if tensor.nbytes >= _SMALLEST_EXTERNAL:
                large.append(value)
            elif isinstance(tensor, ir.ExternalTensor):  # would point to the old data file
                value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
        for node in graph:
            _bring_attributes_in(node)
    if large:
        with open(folder / f"{file_name}.data", "w+b") as file:
            equal = EqualTensors(large, file)
            for value in track(large, len(large)):
                written = append_tensor(file, value)
                if not equal.merged(value, written):
                    value.const_value = written
            file.flush()
            os.fsync(file.fileno())
    ir.save(model, folder / file_name)


def _bring_attributes_in(node: ir.Node) -> None:
    """Constant nodes may keep their tensor in the old data file; put it into the model file."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                copy = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
                node.attributes[name] = ir.AttrTensor(name, copy)


def is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Whether `save_model` puts it into the data file."""
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.nbytes >= _SMALLEST_EXTERNAL


def append_tensor(file: BinaryIO, value: ir.Value) -> ir.ExternalTensor:
    """Write an initializer at the end of a data file, aligned.

    Args:
        file: open for writing, beside the model file that will refer to it.
        value: has a tensor.

    Returns:
        The reference.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensor = value.const_value
    assert tensor is not None  # save_model selected it for having one
    alignment = _PAGE if tensor.nbytes >= _PAGE else _CACHE_LINE
    file.write(bytes(-file.tell() % alignment))
    offset = file.tell()
    if isinstance(tensor, ir.ExternalTensor):
        _copy_bytes(file, tensor)
    else:
        file.write(tensor.tobytes())
    length = file.tell() - offset
    if length != tensor.nbytes:
        raise OSError(f"{value.name}: wrote {length} of {tensor.nbytes} bytes")
    path = Path(file.name)
    return ir.ExternalTensor(
        path.name,
        offset,
        length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        base_dir=path.parent,
    )


def _copy_bytes(file: BinaryIO, tensor: ir.ExternalTensor) -> None:
    """Copy a tensor from file to file in small pieces; it may be larger than memory."""
    left = tensor.nbytes
    with open(tensor.path, "rb") as source:
        source.seek(tensor.offset or 0)
        while left and (piece := source.read(min(left, _COPY_BYTES))):
            file.write(piece)
            left -= len(piece)
