"""The shape a constant has after Reshape, Flatten, Squeeze or Unsqueeze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def new_shape(
    node: ir.Node, source: tuple[int, ...], given: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The shape, or None where it is not known.

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
