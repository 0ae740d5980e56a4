"""Name, dtype and shape of a model's input or output, from a session or from a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import onnxruntime as ort

# onnxruntime's spelling of element types -> ours (NumPy's, and "bfloat16" as ml_dtypes calls it).
_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{f"tensor({sign}int{n})": f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)},
}

# What is no tensor, as ONNX and as onnxruntime call it.
_OTHER_TYPES = {
    "sequence_type": "a sequence",
    "optional_type": "optional",
    "map_type": "a map",
    "sparse_tensor_type": "sparse",
}
_ORT_TYPES = {
    "seq": "a sequence",
    "optional": "optional",
    "map": "a map",
    "sparse_tensor": "sparse",
}
_TAKES = {
    "a sequence": "export the model so that it takes tensors, one for each entry",
    "optional": "export the model so that it takes a tensor there, or without this input",
}

FLOAT_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
# What a KV cache is kept in: floats, or int8 codes.
CACHE_DTYPES = FLOAT_DTYPES | {"int8"}


# One entry per axis: an int where fixed, a str where symbolic, None where nothing is known.
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name ("float32", "int64", "bool", ...) or "bfloat16"; "" where the graph does
            not say, or holds something that is not a tensor.
        shape: see Shape. None for the whole where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: Shape | None

    @property
    def rank(self) -> int | None:
        """Number of axes, None where unknown."""
        return None if self.shape is None else len(self.shape)

    def describe(self) -> str:
        """The spec as a person would write it, such as `input_ids int64 [batch, 128]`."""
        if self.shape is None:
            return f"{self.name} {self.dtype}"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name} {self.dtype} [{axes}]"


def check_tensors(graph: onnx.GraphProto, file: Path) -> None:
    """Refuse inputs and outputs that are no dense tensors.

    Args:
        graph: as it is in the file; onnx_ir does not read every type.
        file: for the message.

    Raises:
        FptqError: a sequence, an optional, a map or a sparse tensor is fed or given.
    """
    for role, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = _OTHER_TYPES.get(value.type.WhichOneof("value") or "")
            if kind is not None:
                raise FptqError(not_a_tensor(f"{file} has", role, value.name, kind))


def not_a_tensor(whose: str, role: str, name: str, kind: str) -> str:
    """What to say of an input or output that is no tensor."""
    advice = (
        _TAKES.get(kind, "export the model so that it takes tensors")
        if role == "input"
        else "export the model so that it gives tensors, or leave this output out"
    )
    return f"{whose} the {role} {name!r}, which is {kind} and not a tensor: {advice}"


def session_inputs(session: ort.InferenceSession) -> list[TensorSpec]:
    """Specs of what the session must be fed, in its order.

    Raises:
        FptqError: one is no tensor.
    """
    return [_from_node_arg(arg, "input") for arg in session.get_inputs()]


def session_outputs(session: ort.InferenceSession) -> list[TensorSpec]:
    """Specs of what the session computes, in its order.

    Raises:
        FptqError: one is no tensor.
    """
    return [_from_node_arg(arg, "output") for arg in session.get_outputs()]


def graph_inputs(graph: ir.Graph) -> list[TensorSpec]:
    """Specs of the graph's inputs that a caller must feed.

    An input with an initializer of the same name has a default value (IR version 3 listed every
    weight so): it is left out.
    """
    return specs_of_values(v for v in graph.inputs if v.name not in graph.initializers)


def graph_outputs(graph: ir.Graph) -> list[TensorSpec]:
    """Specs of the graph's outputs."""
    return specs_of_values(graph.outputs)


def specs_of_values(values: Iterable[ir.Value]) -> list[TensorSpec]:
    """Specs of onnx_ir values, as far as they carry type and shape."""
    specs = []
    for value in values:
        dtype = "" if value.dtype is None else _numpy_name(value.dtype.name)
        shape = None
        if value.shape is not None:
            shape = tuple(
                axis if isinstance(axis, int) else axis.value for axis in value.shape.dims
            )
        specs.append(TensorSpec(value.name or "", dtype, shape))
    return specs


def specs_of_protos(values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    """Specs of inputs, outputs or other values of a graph as protobuf; no tensor has no dtype."""
    from onnx import TensorProto  # most who read a TensorSpec need none of onnx

    specs = []
    for value in values:
        if value.type.WhichOneof("value") != "tensor_type":
            specs.append(TensorSpec(value.name, "", None))
            continue
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            kinds = ((axis, axis.WhichOneof("value")) for axis in tensor.shape.dim)
            shape = tuple(getattr(axis, kind) if kind else None for axis, kind in kinds)
        dtype = _numpy_name(TensorProto.DataType.Name(tensor.elem_type))
        specs.append(TensorSpec(value.name, dtype, shape))
    return specs


def _numpy_name(onnx_name: str) -> str:
    name = onnx_name.lower()
    return {"float": "float32", "double": "float64", "string": "str"}.get(name, name)


def _from_node_arg(arg: ort.NodeArg, role: str) -> TensorSpec:
    kind = _ORT_TYPES.get(arg.type.split("(")[0])
    if kind is not None:
        raise FptqError(not_a_tensor("the model has", role, arg.name, kind))
    # onnxruntime gives [] both for a scalar and for an unknown rank: nothing is known then.
    shape = tuple(arg.shape) if arg.shape else None
    return TensorSpec(arg.name, _ORT_DTYPES.get(arg.type, ""), shape)
