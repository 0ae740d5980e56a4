"""Rows whose KV cache grows in place: GroupQueryAttention with past and present in one buffer.

The operator writes a step's keys and values after each row's own length and looks no further, so
rows of different lengths need no padding, and a row can join or leave at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.kv.base import pieces
from fptq_onnx.generation.kv.ort_values import ELEMENT_TYPES, as_float32, storage, view
from fptq_onnx.runtime.decoder_io import DecoderIO
from fptq_onnx.runtime.proto_graph import ProtoGraph
from fptq_onnx.runtime.session import first_line

_PAST, _LENGTHS, _LATER_INPUTS = (3, 4), (5, 6), 9  # inputs of GroupQueryAttention


def can_share(graph: ProtoGraph, io: DecoderIO) -> bool:
    """Whether past and present may be one buffer.

    Each cache tensor must belong to one GroupQueryAttention alone, whose lengths are computed from
    the attention mask and nothing else, and which takes no bias or positions of its own.

    Args:
        graph: the decoder's.
        io: its roles.
    """
    if not io.cache or io.attention_mask is None or io.cache_position is not None:
        return False
    for tensor in io.cache:
        uses = graph.consumers.get(tensor.past, [])
        if len(uses) != 1 or (tensor.batch_axis, tensor.sequence_axis) != (0, 2):
            return False
        number, place = uses[0]
        node = graph.proto.node[number]
        if node.op_type != "GroupQueryAttention" or place not in _PAST:
            return False
        if tensor.past in graph.inner or tensor.present != node.output[place - 2]:
            return False
        if any(node.input[_LATER_INPUTS:]):
            return False
        if not graph.sources(node.input[i] for i in _LENGTHS) <= {io.attention_mask.name}:
            return False
    return True


class SharedRows:
    """See the module and `CacheRows`."""

    def __init__(
        self, session: ort.InferenceSession, io: DecoderIO, *, max_rows: int, max_length: int
    ) -> None:
        """Reserve room; memory is taken as it is written to.

        Args:
            session: of a graph that `can_share`.
            io: its roles.
            max_rows: rows at a time.
            max_length: tokens in a row, at most.
        """
        self._session, self._io = session, io
        self._max_rows = max_rows
        self._lengths: list[int] = []
        self._buffers: list[NDArray[Any]] = []
        for tensor in io.cache:
            _, heads, _, size = tensor.shape
            # zeros come from fresh pages of the system: untouched ones cost nothing.
            self._buffers.append(
                np.zeros((max_rows, heads, max_length, size), storage(tensor.dtype))
            )
        self._step: _Step | None = None  # of as many rows as there are

    @property
    def lengths(self) -> tuple[int, ...]:
        """See CacheRows."""
        return tuple(self._lengths)

    @property
    def max_rows(self) -> int:
        """See CacheRows."""
        return self._max_rows

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        self._lengths.append(0)
        try:
            return self.extend(len(self._lengths) - 1, ids)
        except BaseException:
            self._lengths.pop()
            raise

    def extend(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        binding = self._bind(row, 1)
        for piece in pieces(ids, self._io):
            logits = self._run(binding, piece, [self._lengths[row]])
            self._lengths[row] += piece.shape[1]
        last: NDArray[np.float32] = logits[0]
        return last

    def truncate(self, row: int, length: int) -> None:
        """See CacheRows."""
        self._lengths[row] = min(length, self._lengths[row])

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        count = len(self._lengths)
        if self._step is None or self._step.rows != count:
            self._step = _Step(self._bind(0, count), self._io, count)
        step = self._step
        step.set_inputs(ids, self._lengths)
        self._bind_mask(step.binding, self._lengths, 1)
        self._run_bound(step.binding, 1, self._lengths)
        self._lengths = [length + 1 for length in self._lengths]
        return step.logits()

    def remove(self, row: int) -> None:
        """See CacheRows."""
        last = self._lengths.pop()
        if row < len(self._lengths):
            for buffer in self._buffers:
                buffer[row, :, :last] = buffer[len(self._lengths), :, :last]
            self._lengths[row] = last

    def _bind(self, row: int, count: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        for tensor, buffer in zip(self._io.cache, self._buffers, strict=True):
            part = buffer[row : row + count]
            where = ("cpu", 0, ELEMENT_TYPES[tensor.dtype], part.shape, part.ctypes.data)
            binding.bind_input(tensor.past, *where)
            binding.bind_output(tensor.present, *where)
        return binding

    def _run(
        self, binding: ort.IOBinding, ids: NDArray[np.int64], past: Sequence[int]
    ) -> NDArray[np.float32]:
        """Feed ids [rows, n] after `past` tokens of each row; logits [rows, vocabulary]."""
        io, count = self._io, ids.shape[1]
        feeds = {io.input_ids: ids}
        if io.position_ids is not None:
            feeds[io.position_ids] = np.asarray(past, np.int64)[:, None] + np.arange(count)
        typed = [np.ascontiguousarray(array, spec.dtype) for spec, array in feeds.items()]
        for spec, array in zip(feeds, typed, strict=True):
            _bind_input(binding, spec.name, array)
        self._bind_mask(binding, past, count)
        binding.bind_output(io.logits.name, "cpu")
        self._run_bound(binding, count, past)
        logits = binding.get_outputs()[len(io.cache)]  # in the order of binding
        return as_float32(view(logits)[:, -1])

    def _bind_mask(self, binding: ort.IOBinding, past: Sequence[int], count: int) -> None:
        """The mask of each row's `past` tokens and `count` more, [rows, longest + count]."""
        spec = self._io.attention_mask
        assert spec is not None
        before = np.asarray(past, np.int64)[:, None]
        mask = np.arange(int(before.max()) + count) < before + count
        self._mask = np.ascontiguousarray(mask, spec.dtype)  # lives until it was read
        _bind_input(binding, spec.name, self._mask)

    def _run_bound(self, binding: ort.IOBinding, count: int, past: Sequence[int]) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
            raise FptqError(
                f"onnxruntime could not run the model on {count} tokens after "
                f"{max(past)}: {first_line(error)}"
            ) from error


class _Step:
    """A decode step of some rows: one token each, in memory that stays bound.

    Its Python is run between two runs of the model, whose weights have just displaced it from every
    cache: binding anew what stays the same would take a fiftieth of a step.
    """

    def __init__(self, binding: ort.IOBinding, io: DecoderIO, rows: int) -> None:
        self.binding, self.rows = binding, rows
        self._cache_tensors = len(io.cache)
        self._inputs = []
        for spec in (io.input_ids, io.position_ids):
            if spec is not None:
                self._inputs.append(np.zeros((rows, 1), spec.dtype))
                _bind_input(binding, spec.name, self._inputs[-1])
        self._logits: NDArray[Any] | None = None
        if io.vocab_size is None:
            binding.bind_output(io.logits.name, "cpu")
            return
        self._logits = np.empty((rows, 1, io.vocab_size), storage(io.logits.dtype))
        kind = ELEMENT_TYPES[io.logits.dtype]
        shape, address = self._logits.shape, self._logits.ctypes.data
        binding.bind_output(io.logits.name, "cpu", 0, kind, shape, address)

    def set_inputs(self, ids: Sequence[int], positions: Sequence[int]) -> None:
        """One token and its position for each row."""
        for array, values in zip(self._inputs, (ids, positions), strict=False):
            array[:, 0] = values

    def logits(self) -> NDArray[np.float32]:
        """A copy of the last run's, [rows, vocabulary]."""
        if self._logits is not None:
            return as_float32(self._logits[:, 0])
        # In the order of binding.
        return as_float32(view(self.binding.get_outputs()[self._cache_tensors])[:, -1])


def _bind_input(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
