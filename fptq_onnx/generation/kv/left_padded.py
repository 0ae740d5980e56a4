"""Sequences whose KV cache is an output that becomes the next step's input, padded on the left.

Between two steps the values are only handed over. They are copied when a sequence joins others,
leaves them, or forgets tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.kv.ort_values import as_float32, ort_value, view
from fptq_onnx.generation.kv.per_sequence import feed
from fptq_onnx.runtime.decoder import Cache, Decoder, empty_cache
from fptq_onnx.runtime.kv_cache import CacheTensor
from fptq_onnx.runtime.session import first_line

_Slot = dict[str, NDArray[Any]]  # by past input: one sequence's elements, batch axis 1, no padding


class LeftPadded:
    """See the module and `SequenceCache`."""

    def __init__(self, decoder: Decoder, *, max_sequences: int) -> None:
        """Begin without sequences.

        Args:
            decoder: with a KV cache.
            max_sequences: sequences at a time; a graph for one sequence holds one.
        """
        self._decoder, self._io = decoder, decoder.io
        self._max_sequences = min(max_sequences, self._io.fixed_batch or max_sequences)
        self._lengths: list[int] = []
        self._cache: Cache | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """See SequenceCache."""
        return tuple(self._lengths)

    @property
    def max_sequences(self) -> int:
        """See SequenceCache."""
        return self._max_sequences

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        logits, cache = feed(self._decoder, ids, None)
        if self._cache is None:
            self._cache, self._lengths = cache, [cache.length]
        else:
            self._merge([*self._slots(), self._slot(cache, 0, cache.length)])
        return logits

    def extend(self, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        if len(self._lengths) == 1:
            logits, self._cache = feed(self._decoder, ids, self._cache)
            self._lengths = [self._cache.length]
            return logits
        slots = self._slots()
        alone = {name: ort_value(array, self._dtype(name)) for name, array in slots[slot].items()}
        logits, cache = feed(self._decoder, ids, Cache(self._lengths[slot], 1, alone))
        slots[slot] = self._slot(cache, 0, cache.length)
        self._merge(slots)
        return logits

    def truncate(self, slot: int, length: int) -> None:
        """See SequenceCache."""
        if length >= self._lengths[slot]:
            return
        slots = self._slots()
        for tensor in self._io.cache:
            whole = slots[slot][tensor.past]
            slots[slot][tensor.past] = whole[_along(tensor, slice(0, length))]
        self._merge(slots)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        assert self._cache is not None
        io, total = self._io, self._cache.length + 1
        lengths = np.asarray(self._lengths, np.int64)[:, None]
        feeds = {io.input_ids: np.asarray(ids, np.int64)[:, None]}
        if io.attention_mask is not None:
            feeds[io.attention_mask] = (np.arange(total) >= total - 1 - lengths).astype(np.int64)
        if io.position_ids is not None:
            feeds[io.position_ids] = lengths
        if io.cache_position is not None:
            feeds[io.cache_position] = np.array([total - 1])
        arrays = {spec.name: np.ascontiguousarray(a, spec.dtype) for spec, a in feeds.items()}
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        names = [io.logits.name, *(tensor.present for tensor in io.cache)]
        try:
            logits, *present = self._decoder.session.run_with_ort_values(
                names, {**values, **self._cache.values}
            )
        except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
            raise FptqError(
                f"onnxruntime could not run the model on {len(ids)} sequences after "
                f"{total - 1} tokens: {first_line(error)}"
            ) from error
        kept = {tensor.past: value for tensor, value in zip(io.cache, present, strict=True)}
        self._cache = Cache(total, len(ids), kept)
        self._lengths = [length + 1 for length in self._lengths]
        return as_float32(view(logits)[:, -1])

    def remove(self, slot: int) -> None:
        """See SequenceCache."""
        if len(self._lengths) == 1:
            self._cache, self._lengths = None, []
            return
        slots = self._slots()
        last = slots.pop()
        if slot < len(slots):
            slots[slot] = last
        self._merge(slots)

    def _slots(self) -> list[_Slot]:
        """Every sequence by itself."""
        cache = self._cache
        assert cache is not None
        return [self._slot(cache, slot, length) for slot, length in enumerate(self._lengths)]

    def _slot(self, cache: Cache, slot: int, length: int) -> _Slot:
        found: _Slot = {}
        for tensor in self._io.cache:
            whole = view(cache.values[tensor.past])
            one = np.take(whole, [slot], axis=tensor.batch_axis)  # copies: `cache` may go
            found[tensor.past] = one[_along(tensor, slice(cache.length - length, None))]
        return found

    def _merge(self, slots: Sequence[_Slot]) -> None:
        """Put sequences side by side, each with zeros before it up to the longest."""
        first = self._io.cache[0]
        lengths = [slot[first.past].shape[first.sequence_axis] for slot in slots]
        total = max(lengths)
        values = {}
        for tensor in self._io.cache:
            like = slots[0][tensor.past]
            shape = list(like.shape)
            shape[tensor.batch_axis], shape[tensor.sequence_axis] = len(slots), total
            merged = np.zeros(shape, like.dtype)
            for index, slot in enumerate(slots):
                place = _along(tensor, slice(total - lengths[index], None))
                part = np.moveaxis(merged[place], tensor.batch_axis, 0)
                part[index] = np.moveaxis(slot[tensor.past], tensor.batch_axis, 0)[0]
            if merged.size:
                values[tensor.past] = ort_value(merged, tensor.dtype)
            else:
                values[tensor.past] = empty_cache(tensor, len(slots))
        self._cache, self._lengths = Cache(total, len(slots), values), lengths

    def _dtype(self, past: str) -> str:
        return next(tensor.dtype for tensor in self._io.cache if tensor.past == past)


def _along(tensor: CacheTensor, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * tensor.sequence_axis, part)
