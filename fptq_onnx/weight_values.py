"""NaN and infinity in weights: a broken checkpoint, named before anything is computed with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.mapped_pages import forget_pages

# The unsigned type of the same size; the bits of the exponent, all set in NaN and infinity; and the
# bits of the mantissa, of which NaN has some.
_Kind = tuple[type[np.unsignedinteger[Any]], int, int]
_EXPONENTS: dict[ir.DataType, _Kind] = {
    ir.DataType.FLOAT16: (np.uint16, 0x7C00, 0x03FF),
    ir.DataType.BFLOAT16: (np.uint16, 0x7F80, 0x007F),
    ir.DataType.FLOAT: (np.uint32, 0x7F800000, 0x007FFFFF),
    ir.DataType.DOUBLE: (np.uint64, 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
}
_CHUNK = 1 << 20  # elements looked at together: they stay in a core's cache
# What a weight goes through on its way to the op that uses it.
_KEEPS_VALUES = {
    "Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
    "Concat", "Expand",
}  # fmt: skip
# Ops whose constants are weights. Add and Mul are not here: infinities in a matrix that is added
# are a mask, in a vector they are a bias out of range.
_USES_WEIGHTS = {
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Gather", "LayerNormalization",
    "RMSNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "EmbedLayerNormalization", "LSTM", "GRU", "RNN", "FusedMatMul", "FusedGemm", "MoE", "PRelu",
}  # fmt: skip
_ELEMENTWISE = {"Add", "Mul", "Sub", "Div", "BiasGelu", "FastGelu", "BiasAdd"}


def check_weights(model_file: object, model: ir.Model) -> None:
    """Look at all float weights, in pieces, and refuse NaN and infinity.

    NaN is refused in every constant of several values. Infinity is refused in weights, biases,
    gains and tables; a constant whose other values are all the same is a mask, and masks are to
    hold -inf.

    Args:
        model_file: for the message.
        model: read, not changed; of mapped files little stays resident.

    Raises:
        FptqError: the first weight found, and how many more there are.
    """
    found: list[str] = []
    for name, tensor, value in _constants(model):
        kind = _EXPONENTS.get(tensor.dtype)
        if kind is None or tensor.size < 2:
            continue
        bad = _look(_bits(tensor, kind[0]), kind)
        _forget(tensor, value)
        if bad is None:
            continue
        is_nan, count, place, masks = bad
        if not is_nan and (masks or not _is_weight(value, len(tensor.shape))):
            continue
        reader = _reader(value)
        index = ", ".join(str(int(i)) for i in np.unravel_index(place, tensor.shape.numpy()))
        found.append(
            f"the weight {name!r}{reader} holds {'NaN' if is_nan else 'infinity'} "
            f"({count} of {tensor.size} values, the first at [{index}])"
        )
    if found:
        more = f", and {len(found) - 1} more weights do" if len(found) > 1 else ""
        raise FptqError(
            f"{model_file}: {found[0]}{more}: the checkpoint is broken, download or export it again"
        )


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol, ir.Value]]:
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value, value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                yield str(node.outputs[0].name), attribute.as_tensor(), node.outputs[0]


def _bits(
    tensor: ir.TensorProtocol, unsigned: type[np.unsignedinteger[Any]]
) -> NDArray[np.unsignedinteger[Any]]:
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(unsigned)


def _look(
    bits: NDArray[np.unsignedinteger[Any]], kind: _Kind
) -> tuple[bool, int, int, bool] | None:
    """Whether NaN or only infinity is there, of how many, the first's place, and if a mask it is.

    Returns:
        None where all values are finite.
    """
    unsigned, exponent, mantissa = kind
    top, low = unsigned(exponent), unsigned(mantissa)
    count, first, nan = 0, -1, -1
    positive, others = False, set[int]()
    for start in range(0, bits.size, _CHUNK):
        piece = bits[start : start + _CHUNK]
        outside = (piece & top) == top
        if outside.any():
            places = np.flatnonzero(outside)
            values = piece[places]
            count += places.size
            first = start + int(places[0]) if first < 0 else first
            positive = positive or bool((values == top).any())
            nans = (values & low) != 0
            if nan < 0 and nans.any():
                nan = start + int(places[int(nans.argmax())])
        if len(others) < 2:
            inside = piece[~outside]
            if inside.size:
                others |= {int(inside.min()), int(inside.max())}
    if not count:
        return None
    is_mask = not positive and len(others) < 2
    return nan >= 0, count, nan if nan >= 0 else first, is_mask


def _forget(tensor: ir.TensorProtocol, value: ir.Value) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        forget_pages([value])


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """The nodes that use a constant, past those that only move its values."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        now = waiting.pop()
        for node, index in now.uses():
            if node.op_type in _KEEPS_VALUES:
                if id(node) not in seen:
                    seen.add(id(node))
                    waiting += node.outputs
            else:
                yield node, index, now


def _is_weight(value: ir.Value, rank: int) -> bool:
    for node, index, _ in _readers(value):
        if node.op_type in _USES_WEIGHTS and not (node.op_type == "Gather" and index):
            return True
        if node.op_type in _ELEMENTWISE and rank == 1:
            return True
    return False


def _reader(value: ir.Value) -> str:
    for node, _, _ in _readers(value):
        return f" (of {node.op_type} {node.name})"
    return ""
