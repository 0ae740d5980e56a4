"""What nodes make of constants: arithmetic (half floats in float32), picks, and new shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.generic]


def in_float32(op: Callable[..., Any], *arrays: Array) -> Array:
    """The result in the type of the first array; half floats would overflow, or lose more."""
    first = arrays[0].dtype
    wide = np.float32 if first.itemsize == 2 and first.kind in "fV" else first  # V: bfloat16
    result = op(*(array.astype(wide, copy=False) for array in arrays))
    return np.asarray(result).astype(first, copy=False)


def power(base: Array, exponent: Array) -> Array:
    """Base to the exponent, of whatever type, in the type of the base."""
    return in_float32(lambda b: np.power(b, exponent), base)


def root_of_squares(array: NDArray[Any], axis: tuple[int, ...], *, keepdims: bool) -> Array:
    """The Euclidean norm along axes."""
    squares = np.sum(np.square(array), axis=axis, keepdims=keepdims)
    return np.asarray(np.sqrt(squares))


def pick(array: Array, picks: NDArray[Any], axis: int) -> Array:
    """Entries along an axis by number, negative from the end; of one number a view."""
    if picks.ndim == 0:
        return array[(slice(None),) * axis + (int(picks),)]
    return np.take(array, picks, axis)


def new_shape(
    node: ir.Node, source: tuple[int, ...], given: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The shape a constant has after Reshape, Flatten, Squeeze or Unsqueeze; None if unknown.

    Args:
        node: one of these.
        source: the shape before.
        given: the constant second input, sizes or axes; None where there is none.
    """
    if node.op_type == "Squeeze":
        axes = {axis % len(source) for axis in given} if given is not None else None
        kept = [d for i, d in enumerate(source) if (i not in axes if axes is not None else d != 1)]
        return tuple(kept)
    if node.op_type == "Flatten":
        axis = node.attributes.get("axis")
        at = 1 if axis is None else axis.as_int() % max(1, len(source))
        return (int(np.prod(source[:at])), int(np.prod(source[at:])))
    if given is None:
        return None
    if node.op_type == "Unsqueeze":
        rank = len(source) + len(given)
        new = {axis % rank for axis in given}
        rest = iter(source)
        return tuple(1 if axis in new else next(rest) for axis in range(rank))
    if node.attributes.get("allowzero") is not None or 0 in source:
        return None
    sizes = [source[i] if d == 0 and i < len(source) else d for i, d in enumerate(given)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = int(np.prod(source)) // max(1, -int(np.prod(sizes)))
    return tuple(sizes)
