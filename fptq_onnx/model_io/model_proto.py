"""A model file as protobuf, without its external data: what can be told before a graph is made.

onnx_ir, which graphs are made with, takes longer to import than a small model takes to answer:
what only runs a model reads it by this module, and makes a graph where `plain_proto` finds none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.op_domains import ONNX_DOMAIN, one_name
from fptq_onnx.model_io.downloaded_file import check_downloaded, check_model_downloaded
from fptq_onnx.model_io.tensor_spec import check_tensors

OPSETS = range(17, 29)  # of the standard operators, as graphs are used; older ones are raised

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64, TensorProto.BOOL: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64,
}  # fmt: skip


def read_proto(path: Path) -> onnx.ModelProto:
    """A model without its external data.

    Raises:
        FptqError: no such file, or it is not an ONNX model.
    """
    if not path.is_file():
        raise FptqError(f"no model file at {path}; give an .onnx file or a folder that holds one")
    check_model_downloaded(path)
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, or OSError
        raise FptqError(f"{path} is not an ONNX model file, or is cut short") from error
    if not proto.opset_import:
        raise FptqError(f"{path} is not an ONNX model file: it imports no operator set")
    return proto


def plain_proto(file: Path) -> onnx.ModelProto | None:
    """A model that ONNX Runtime runs by the names in its file, and that `load_model` leaves as is.

    Args:
        file: the .onnx file.

    Returns:
        The model; None where `load_model` would change something, or has to say what is wrong, and
        for what is seldom: subgraphs and functions.
    """
    try:
        proto = read_proto(file)
        check_tensors(proto.graph, file)
        helped = needs_help(proto, file)
    except FptqError:
        return None
    graph = proto.graph
    opsets = [entry for entry in proto.opset_import if one_name(entry.domain) == ONNX_DOMAIN]
    initializers = {tensor.name for tensor in graph.initializer}
    plain = (
        not helped
        and len(opsets) == 1
        and opsets[0].domain == ONNX_DOMAIN
        and opsets[0].version in OPSETS
        and len(graph.node) > 0
        and not proto.functions
        and not graph.sparse_initializer
        and not any(value.name in initializers for value in graph.input)
        and _values_are_made(graph, initializers)
        and all(_data_is_there(tensor, file.parent) for tensor in tensor_protos(graph))
    )
    return proto if plain else None


def _values_are_made(graph: onnx.GraphProto, initializers: set[str]) -> bool:
    """Whether all that is read or given is an input, an initializer or made by a plain node."""
    made = {"", *initializers, *(value.name for value in graph.input)}
    for node in graph.node:
        made.update(node.output)
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS,
                                  onnx.AttributeProto.SPARSE_TENSOR):  # fmt: skip
                return False
    read = {name for node in graph.node for name in node.input}
    return read <= made and {value.name for value in graph.output} <= made


def _data_is_there(tensor: onnx.TensorProto, folder: Path) -> bool:
    if tensor.data_location != TensorProto.EXTERNAL:
        return True
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    if os.path.isabs(location):
        return False
    path, bits = folder / location, _BITS.get(tensor.data_type)
    if not location or bits is None or not path.is_file():
        return False
    bytes_ = math.ceil(math.prod(tensor.dims) * bits / 8)
    try:
        offset = int(said.get("offset", 0))
        length = int(said.get("length", bytes_))
    except ValueError:
        return False
    return offset >= 0 and length >= bytes_ and offset + bytes_ <= path.stat().st_size


def needs_help(proto: onnx.ModelProto, file: Path) -> bool:
    """Whether ONNX Runtime cannot open a model's external data by the names in its file.

    Args:
        proto: the model, without its external data.
        file: the .onnx file.

    Raises:
        FptqError: a data file was not downloaded, see check_downloaded.
    """
    inside = file.parent.resolve()
    locations = {
        entry.value
        for tensor in tensor_protos(proto.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in locations:
        if location and not os.path.isabs(location) and os.pardir not in Path(location).parts:
            check_downloaded(file.parent / location)
    return any(
        not (file.parent / location).exists()
        or not (file.parent / location).resolve().is_relative_to(inside)
        for location in locations
    )


def tensor_protos(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph: initializers and tensor attributes, subgraphs included."""
    graphs = [graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
