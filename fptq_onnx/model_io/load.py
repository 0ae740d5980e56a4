"""Read a model folder without reading its weights, and refuse what would go wrong later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.graph_state import GraphState
from fptq_onnx.graph.linears.linears import LinearScan, find_linears
from fptq_onnx.model_io.constant_inputs import drop_constant_inputs
from fptq_onnx.model_io.downloaded_file import check_model_downloaded
from fptq_onnx.model_io.external_data import locate_data, tensors_of
from fptq_onnx.model_io.hf_config import SpecialIds, read_special_ids
from fptq_onnx.model_io.model_choice import find_model_file
from fptq_onnx.model_io.model_proto import OPSETS
from fptq_onnx.model_io.opset.raise_old_opset import OLDEST, raise_old_opset
from fptq_onnx.model_io.tensor_spec import TensorSpec, check_tensors, graph_inputs, graph_outputs

__all__ = ["LoadedModel", "fingerprint", "load_model", "tensors_of"]

T = TypeVar("T")

# Of a tensor, for a fingerprint.
_PIECES = 8  # spread evenly
_LENGTH = 64  # values of each
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
    data_base: what locations of external data in `model` are relative to, where that is not the
        folder: see locate_data. ONNX Runtime cannot open `file` by itself then.
    notes: what was changed on loading, for people.
    """

    model: ir.Model
    file: Path
    data_files: tuple[Path, ...]
    raised_from: int | None = None
    data_base: Path | None = None
    notes: tuple[str, ...] = ()
    _found: dict[str, tuple[object, object]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, what: str, given: object, find: Callable[[], T]) -> T:
        """A fact about the model, found when it is first asked for.

        Args:
            what: the name of the fact.
            given: all that it depends on and that may change, to be compared with what it was;
                the fact is found anew where it differs, so that none outlives what it speaks of.
            find: finds it; what it raises is not kept.
        """
        known = self._found.get(what)
        if known is None or known[0] != given:
            known = self._found[what] = (given, find())
        return known[1]  # type: ignore[return-value]  # a fact has the type of its finder

    @property
    def inputs(self) -> list[TensorSpec]:
        """Specs of what a caller must feed, as the graph is now: passes may change their types."""
        return graph_inputs(self.model.graph)

    @property
    def outputs(self) -> list[TensorSpec]:
        """Specs of what the model gives, as the graph is now."""
        return graph_outputs(self.model.graph)

    @property
    def linears(self) -> LinearScan:
        """See `find_linears`. The same scan, with all it has found, until the graph is changed."""
        return self.once("linears", GraphState(self.model), lambda: find_linears(self.model))

    @property
    def special_ids(self) -> SpecialIds:
        """See `read_special_ids`: of the files beside the model, as they were at first."""
        return self.special_ids_with(None)

    def special_ids_with(self, tokenizer_folder: Path | None) -> SpecialIds:
        """The same, where the tokenizer may be in another folder.

        Raises:
            FptqError: see `read_special_ids`.
        """
        return self.once(
            f"special ids {tokenizer_folder}",
            None,
            lambda: read_special_ids(self.folder, tokenizer_folder),
        )

    @property
    def folder(self) -> Path:
        """The folder of the model file; for tokenizer and configs see side_file."""
        return self.file.parent

    @property
    def data_folder(self) -> Path:
        """What locations of external data in `model` are relative to."""
        return self.folder if self.data_base is None else self.data_base

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
            folder, an input or output that is no tensor, or a model that is already quantized.
    """
    file = find_model_file(path)
    check_model_downloaded(file)
    try:
        proto = onnx.load(file, load_external_data=False)
        sparse = _sparse_weight(proto)
        if sparse is not None:
            raise FptqError(
                f"{file} stores the weight {sparse!r} sparsely, which is not supported: store its "
                f"zeros too (a dense initializer), or export the model again"
            )
        check_tensors(proto.graph, file)
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
    if not OLDEST <= opset <= OPSETS[-1]:
        raise FptqError(
            f"{file} uses opset {opset}, supported are {OLDEST} to {OPSETS[-1]}: export it again "
            f"with one of these"
            + (", or raise it with onnx.version_converter" if 0 < opset < OLDEST else "")
        )
    _check_values(model, file)
    notes = drop_constant_inputs(model)
    data = locate_data(model, file)
    if not allow_quantized:
        for node in model.graph.all_nodes():
            if node.op_type in _ALREADY_QUANTIZED:
                raise FptqError(
                    f"{file} is already quantized (node {node.name!r} is {node.op_type}): "
                    f"give the float model it was made from"
                )
    try:
        raised_from = raise_old_opset(model)
    except FptqError as error:
        raise FptqError(
            f"{file} cannot be raised from opset {opset} to 17: {error}; export it again with "
            f"opset 17 or newer"
        ) from error
    base = None if data.as_named else data.folder
    return LoadedModel(model, file, data.files, raised_from, base, notes)


def fingerprint(model: ir.Model) -> str:
    """Tell a model from others by its weights, without reading them all.

    Name, type, shape and a few values of every initializer: two trainings, two sizes or two
    exporters differ in these, while a copy, or the same graph with its data in other files, does
    not.

    Args:
        model: loaded, and normalized or not: only models in the same state can be compared.

    Returns:
        A digest in hexadecimal; of a big model some megabytes are read.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.numpy().reshape(-1)
        for start in np.linspace(0, max(0, flat.size - _LENGTH), _PIECES, dtype=np.int64):
            digest.update(np.ascontiguousarray(flat[start : start + _LENGTH]).tobytes())
    return digest.hexdigest()


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
