"""Tensors of equal bytes in a data file are stored once, and read as one initializer.

Weights that several linears have, biases and tables that exporters copied under other names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO

import onnx_ir as ir

_SAMPLE = 256  # bytes at the beginning, in the middle and at the end that are compared first
_PIECE = 1 << 22


class EqualTensors:
    """Finds what was written before.

    Args:
        values: all that will be written; types and shapes that occur once are not looked at.
        file: open for writing and reading.
    """

    def __init__(self, values: Sequence[ir.Value], file: BinaryIO) -> None:
        self._counts = Counter(_kind(value.const_value) for value in values)
        self._file = file
        self._written: dict[tuple[object, ...], list[tuple[ir.Value, ir.ExternalTensor]]] = {}

    def merged(self, value: ir.Value, written: ir.ExternalTensor) -> bool:
        """Take what was written at the end of the file off again if it is there already.

        The readers of the value then read the earlier one.

        Args:
            value: an initializer.
            written: where its tensor is now.
        """
        kind = _kind(value.const_value)
        if self._counts[kind] < 2:
            return False
        offset, length = written.offset or 0, written.length or 0
        middle, last = offset + length // 2, offset + max(0, length - _SAMPLE)
        sample = b"".join(self._read(start, _SAMPLE) for start in (offset, middle, last))
        alike = self._written.setdefault((*kind, sample), [])
        for twin, place in alike:
            if self._equal(place.offset or 0, offset, length):
                self._file.seek(offset)
                self._file.truncate()
                _put_in_place(value, twin, place)
                return True
        self._file.seek(0, 2)
        alike.append((value, written))
        return False

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def _equal(self, first: int, second: int, length: int) -> bool:
        return all(
            self._read(first + done, min(_PIECE, length - done))
            == self._read(second + done, min(_PIECE, length - done))
            for done in range(0, length, _PIECE)
        )


def _kind(tensor: ir.TensorProtocol | None) -> tuple[object, ...]:
    return () if tensor is None else (tensor.dtype, tuple(tensor.shape.numpy()))


def _put_in_place(value: ir.Value, twin: ir.Value, place: ir.ExternalTensor) -> None:
    """Let readers of a value read its twin; where it has to keep its name, both name one place."""
    graph = value.graph
    apart = value.is_graph_output() or value.is_graph_input() or twin.is_graph_input()
    if graph is None or graph is not twin.graph or apart:
        value.const_value = ir.ExternalTensor(
            place.location, place.offset, place.length, place.dtype, shape=place.shape,
            name=value.name or "", base_dir=place.base_dir,
        )  # fmt: skip
        return
    value.replace_all_uses_with(twin)
    del graph.initializers[value.name or ""]
