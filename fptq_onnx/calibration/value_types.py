"""What is known of a value between segments, told to the segment that reads it.

In the whole model ONNX Runtime infers ranks and sizes from the inputs on. A segment begins at
values nobody declared, and Scan does not run where the rank of an output stays unknown. So each
value is declared as it was seen in all samples: the sizes it always had, and how many axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fptq_onnx.calibration.value_store import Held

# What NumPy has no type for, and strings, which ONNX Runtime makes no value of an array of.
_NO_ARRAYS = tuple(f"tensor({name}" for name in ("string", "bfloat16", "float8", "int4", "uint4"))
_NAMES = {"float": ir.DataType.FLOAT, "double": ir.DataType.DOUBLE}


@dataclass(frozen=True)
class ValueType:
    """The type of a value and, of a tensor, its sizes: None where they differ between samples.

    sizes: None for what is no array, and where samples differ in the number of axes.
    """

    type: ir.TypeProtocol | None
    sizes: tuple[int | None, ...] | None

    @classmethod
    def of(cls, held: Held) -> ValueType:
        """What one value shows."""
        if isinstance(held, np.ndarray):
            return cls(ir.TensorType(ir.DataType.from_numpy(held.dtype)), held.shape)
        return cls(_type_named(held.data_type()), None)

    def common(self, other: ValueType) -> ValueType:
        """What is true of both."""
        if self.sizes == other.sizes:
            return self
        mine, theirs = self.sizes, other.sizes
        if mine is None or theirs is None or len(mine) != len(theirs):
            return ValueType(self.type, None)
        pairs = zip(mine, theirs, strict=True)
        return ValueType(self.type, tuple(a if a == b else None for a, b in pairs))

    def tell(self, value: ir.Value) -> None:
        """Declare a graph input of it."""
        value.type = self.type if value.type is None else value.type
        value.shape = None if self.sizes is None else ir.Shape(self.sizes)


def is_array(value: ort.OrtValue) -> bool:
    """Whether NumPy can hold a value."""
    return bool(value.is_tensor()) and not value.data_type().startswith(_NO_ARRAYS)


def _type_named(name: str) -> ir.TypeProtocol | None:
    """The type ONNX Runtime calls "seq(tensor(float))"; None for what is not known here."""
    if name.startswith("seq(") and (inner := _type_named(name[4:-1])) is not None:
        return ir.SequenceType(inner)
    if name.startswith("tensor("):
        inner_name = name[7:-1]
        known = _NAMES.get(inner_name) or getattr(ir.DataType, inner_name.upper(), None)
        return None if known is None else ir.TensorType(known)
    return None
