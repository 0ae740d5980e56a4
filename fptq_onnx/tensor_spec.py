"""Name, dtype and shape of a model's input or output, from a session or from a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

FLOAT_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
# What a KV cache is kept in: floats, or int8 codes.
CACHE_DTYPES = FLOAT_DTYPES | {"int8"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name ("float32", "int64", "bool", ...) or "bfloat16"; "" where the graph does
            not say, or holds something that is not a tensor.
        shape: one entry per axis: an int where fixed, a str where symbolic, None where the graph
            says nothing of that axis. None for the whole where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

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


def session_inputs(session: ort.InferenceSession) -> list[TensorSpec]:
    """Specs of what the session must be fed, in its order."""
    return [_from_node_arg(arg) for arg in session.get_inputs()]


def session_outputs(session: ort.InferenceSession) -> list[TensorSpec]:
    """Specs of what the session computes, in its order."""
    return [_from_node_arg(arg) for arg in session.get_outputs()]


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
        dtype = "" if value.dtype is None else value.dtype.name.lower()
        dtype = {"float": "float32", "double": "float64", "string": "str"}.get(dtype, dtype)
        shape = None
        if value.shape is not None:
            shape = tuple(
                axis if isinstance(axis, int) else axis.value for axis in value.shape.dims
            )
        specs.append(TensorSpec(value.name or "", dtype, shape))
    return specs


def _from_node_arg(arg: ort.NodeArg) -> TensorSpec:
    # onnxruntime gives [] both for a scalar and for an unknown rank: nothing is known then.
    shape = tuple(arg.shape) if arg.shape else None
    return TensorSpec(arg.name, _ORT_DTYPES.get(arg.type, ""), shape)
