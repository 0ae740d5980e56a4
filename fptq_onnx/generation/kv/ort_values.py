"""Memory of OrtValues as NumPy sees it, bfloat16 included, which NumPy has no type for."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_FLOAT, _INT8, _FLOAT16, _BFLOAT16 = 1, 3, 10, 16  # TensorProto.DataType
_STORAGE: dict[int, type[np.generic]] = {
    _FLOAT: np.float32,
    _INT8: np.int8,
    _FLOAT16: np.float16,
    _BFLOAT16: np.uint16,
}
ELEMENT_TYPES = {"float32": _FLOAT, "int8": _INT8, "float16": _FLOAT16, "bfloat16": _BFLOAT16}


def storage(dtype: str) -> type[np.generic]:
    """The NumPy type that holds a cache's elements; uint16 for bfloat16."""
    return _STORAGE[ELEMENT_TYPES[dtype]]


def view(value: ort.OrtValue) -> NDArray[Any]:
    """The elements of an OrtValue where they lie; valid while `value` lives."""
    dtype = np.dtype(_STORAGE[value.element_type()])
    shape = value.shape()
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    memory = (ctypes.c_char * size).from_address(value.data_ptr())
    return np.frombuffer(memory, dtype).reshape(shape)


def ort_value(array: NDArray[Any], dtype: str) -> ort.OrtValue:
    """An OrtValue over an array's memory, or a copy of it."""
    array = np.ascontiguousarray(array)
    if dtype == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """A copy of stored elements as float32; uint16 are bfloat16, its upper half."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.array(array, np.float32)
