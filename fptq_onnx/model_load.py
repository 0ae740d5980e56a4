"""Read a model folder without reading its weights, and refuse what would go wrong later."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import find_model_file
from fptq_onnx.passes.raise_old_opset import OLDEST, raise_old_opset

NEWEST_OPSET = 28
_ALREADY_QUANTIZED = {
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulW4A8",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QLinearMatMul",
    "QGemm",
    "QMoE",
    "QAttention",
    "QuantizeLinear",
    "DequantizeLinear",
    "GatherBlockQuantized",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    model: the graph; big weights are memory-mapped ExternalTensors.
    file: the .onnx file.
    data_files: the external data files it refers to.
    raised_from: the opset in the file, where that is older than the graph's 17; else None.
    """

    model: ir.Model
    file: Path
    data_files: tuple[Path, ...]
    raised_from: int | None = None

    @property
    def folder(self) -> Path:
        """The folder that holds the model, its data, tokenizer and configs."""
        return self.file.parent

    @property
    def bytes(self) -> int:
        """Size of the model file and its data files."""
        return sum(path.stat().st_size for path in (self.file, *self.data_files))

    def sha256(self) -> dict[str, str]:
        """The sha256 of each file, by file name."""
        digests = {}
        for path in (self.file, *self.data_files):
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            digests[path.relative_to(self.folder).as_posix()] = digest.hexdigest()
        return digests


def load_model(path: Path, *, allow_quantized: bool = False) -> LoadedModel:
    """Load a model; its weights stay in their files until somebody reads them.

    A graph of an opset before 17 is brought to 17; its file stays as it is.

    Args:
        path: a .onnx file, or a folder with one.
        allow_quantized: accept a model that already holds quantized ops (to check an output).

    Raises:
        FptqError: not an ONNX file, an opset outside 7..28, a node that cannot be raised, sparse
            weights, a value that nothing makes, external data missing, truncated or outside the
            folder, or a model that is already quantized.
    """
    file = find_model_file(path)
    try:
        proto = onnx.load(file, load_external_data=False)
        sparse = _sparse_weight(proto)
        if sparse is not None:
            raise FptqError(
                f"{file} stores the weight {sparse!r} sparsely, which is not supported: store its "
                f"zeros too (a dense initializer), or export the model again"
            )
        model = ir.from_proto(proto)
        del proto
        ir.external_data.set_base_dir(model.graph, file.parent)
    except FptqError:
        raise
    except (OSError, ValueError, TypeError, DecodeError) as error:
        raise FptqError(f"{file} is not a readable ONNX model: export it again") from error
    except Exception as error:  # onnx_ir wraps what its deserializer meets in its own types
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FptqError(f"{file} is not a readable ONNX model ({why}): export it again") from error
    if len(model.graph) == 0:
        raise FptqError(f"{file} is not an ONNX model, or an empty one: export it again")
    if "ai.onnx" in model.opset_imports:  # the other name of the default domain
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    opset = model.opset_imports.get("", 0)
    if not OLDEST <= opset <= NEWEST_OPSET:
        raise FptqError(
            f"{file} uses opset {opset}, supported are {OLDEST} to {NEWEST_OPSET}: export it again "
            f"with one of these"
            + (", or raise it with onnx.version_converter" if 0 < opset < OLDEST else "")
        )
    _check_values(model, file)
    data_files = _check_external_data(model, file.parent)
    if not allow_quantized:
        for node in model.graph.all_nodes():
            if node.op_type in _ALREADY_QUANTIZED:
                raise FptqError(
                    f"{file} is already quantized (node {node.name!r} is {node.op_type}): "
                    f"give the float model it was made from"
                )
    try:
        return LoadedModel(model, file, data_files, raise_old_opset(model))
    except FptqError as error:
        raise FptqError(
            f"{file} cannot be raised from opset {opset} to 17: {error}; export it again with "
            f"opset 17 or newer"
        ) from error


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


def _sparse_weight(proto: onnx.ModelProto) -> str | None:
    """The name of a weight stored sparsely, in a graph, subgraph or function; None.

    onnx_ir drops sparse initializers without a word, so they are looked for before it reads.
    """
    graphs, nodes = [proto.graph], [node for function in proto.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        for weight in graph.sparse_initializer:
            return str(weight.values.name)
        nodes.extend(graph.node)
        while nodes:
            node = nodes.pop()
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                    return ", ".join(node.output)
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
    return None


def _check_values(model: ir.Model, file: Path) -> None:
    """Check that all that nodes read is an input, an initializer or made by a node."""
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is None or value.producer() is not None:
                continue
            if not (value.is_graph_input() or value.is_initializer()):
                raise FptqError(
                    f"{file} is not a valid ONNX model: node {node.name!r} reads {value.name!r}, "
                    f"which is no input, no weight and made by no node; export it again"
                )

    for graph in model.graphs():
        own = {id(value) for node in graph for value in node.outputs}
        own |= {id(value) for value in (*graph.inputs, *graph.initializers.values())}
        for value in graph.outputs:
            if id(value) not in own:
                raise FptqError(
                    f"{file} is not a valid ONNX model: the graph {graph.name!r} gives "
                    f"{value.name!r}, which none of its nodes makes; put an Identity there"
                )


def _check_external_data(model: ir.Model, folder: Path) -> tuple[Path, ...]:
    """Check every reference to external data before anything maps it."""
    sizes: dict[Path, int] = {}
    root = folder.resolve()
    for tensor in tensors_of(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = os.fspath(tensor.location)
        path = folder / location
        if Path(location).is_absolute() or not path.resolve().is_relative_to(root):
            linked = path.is_symlink() and os.pardir not in Path(location).parts
            raise FptqError(
                f"refused: the weight {tensor.name!r} points to external data outside the model's "
                f"folder ({location}"
                + (", a symbolic link): copy the files themselves, cp -rL" if linked else ")")
            )
        if path not in sizes:
            if not path.is_file():
                raise FptqError(f"external data file {path} is missing: copy it next to the model")
            sizes[path] = path.stat().st_size
        offset = tensor.offset or 0
        length = tensor.nbytes if tensor.length is None else tensor.length
        if length < tensor.nbytes or offset < 0 or offset + tensor.nbytes > sizes[path]:
            raise FptqError(
                f"external data file {path} is truncated: the weight {tensor.name!r} ends at byte "
                f"{offset + tensor.nbytes}, the file has {sizes[path]}; copy or export it again"
            )
    return tuple(sizes)
