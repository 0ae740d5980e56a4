"""Rows whose KV cache is an output that becomes the next step's input, padded on the left.

Between two steps the values are only handed over. They are copied when a row joins others, leaves
them, or forgets tokens.
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

_Row = dict[str, NDArray[Any]]  # by past input: one row's elements, batch axis 1, no padding


class PaddedRows:
    """See the module and `CacheRows`."""

    def __init__(self, decoder: Decoder, *, max_rows: int) -> None:
        """Begin without rows.

        Args:
            decoder: with a KV cache.
            max_rows: rows at a time; a graph for one sequence holds one.
        """
        self._decoder, self._io = decoder, decoder.io
        self._max_rows = min(max_rows, self._io.fixed_batch or max_rows)
        self._lengths: list[int] = []
        self._cache: Cache | None = None

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
        logits, cache = feed(self._decoder, ids, None)
        if self._cache is None:
            self._cache, self._lengths = cache, [cache.length]
        else:
            self._merge([*self._rows(), self._row(cache, 0, cache.length)])
        return logits

    def extend(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        if len(self._lengths) == 1:
            logits, self._cache = feed(self._decoder, ids, self._cache)
            self._lengths = [self._cache.length]
            return logits
        rows = self._rows()
        alone = {name: ort_value(array, self._dtype(name)) for name, array in rows[row].items()}
        logits, cache = feed(self._decoder, ids, Cache(self._lengths[row], 1, alone))
        rows[row] = self._row(cache, 0, cache.length)
        self._merge(rows)
        return logits

    def truncate(self, row: int, length: int) -> None:
        """See CacheRows."""
        if length >= self._lengths[row]:
            return
        rows = self._rows()
        for tensor in self._io.cache:
            whole = rows[row][tensor.past]
            rows[row][tensor.past] = whole[_along(tensor, slice(0, length))]
        self._merge(rows)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
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

    def remove(self, row: int) -> None:
        """See CacheRows."""
        if len(self._lengths) == 1:
            self._cache, self._lengths = None, []
            return
        rows = self._rows()
        last = rows.pop()
        if row < len(rows):
            rows[row] = last
        self._merge(rows)

    def _rows(self) -> list[_Row]:
        """Every row by itself."""
        cache = self._cache
        assert cache is not None
        return [self._row(cache, row, length) for row, length in enumerate(self._lengths)]

    def _row(self, cache: Cache, row: int, length: int) -> _Row:
        found: _Row = {}
        for tensor in self._io.cache:
            whole = view(cache.values[tensor.past])
            one = np.take(whole, [row], axis=tensor.batch_axis)  # copies: `cache` may go
            found[tensor.past] = one[_along(tensor, slice(cache.length - length, None))]
        return found

    def _merge(self, rows: Sequence[_Row]) -> None:
        """Put rows side by side, each with zeros before it up to the longest."""
        first = self._io.cache[0]
        lengths = [row[first.past].shape[first.sequence_axis] for row in rows]
        total = max(lengths)
        values = {}
        for tensor in self._io.cache:
            like = rows[0][tensor.past]
            shape = list(like.shape)
            shape[tensor.batch_axis], shape[tensor.sequence_axis] = len(rows), total
            merged = np.zeros(shape, like.dtype)
            for index, row in enumerate(rows):
                place = _along(tensor, slice(total - lengths[index], None))
                part = np.moveaxis(merged[place], tensor.batch_axis, 0)
                part[index] = np.moveaxis(row[tensor.past], tensor.batch_axis, 0)[0]
            if merged.size:
                values[tensor.past] = ort_value(merged, tensor.dtype)
            else:
                values[tensor.past] = empty_cache(tensor, len(rows))
        self._cache, self._lengths = Cache(total, len(rows), values), lengths

    def _dtype(self, past: str) -> str:
        return next(tensor.dtype for tensor in self._io.cache if tensor.past == past)


def _along(tensor: CacheTensor, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * tensor.sequence_axis, part)
