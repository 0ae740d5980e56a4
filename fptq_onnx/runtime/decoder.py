"""Run an exported causal language model: prefill, and decode with its KV cache."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.model_io.tensor_spec import session_inputs, session_outputs
from fptq_onnx.runtime.decoder_io import DecoderIO, find_io
from fptq_onnx.runtime.kv_cache import CacheTensor
from fptq_onnx.runtime.session import first_line, open_session

_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16; NumPy has no such type of its own


@dataclass(frozen=True)
class Cache:
    """The KV cache after some tokens. It stays in onnxruntime's memory and is never copied.

    Attributes:
        length: tokens it holds.
        batch: sequences it holds.
        values: OrtValue by past input name.
    """

    length: int
    batch: int
    values: dict[str, ort.OrtValue]


@dataclass(frozen=True)
class Step:
    """What one call of the model gave.

    Attributes:
        logits: float32 [batch, sequence, vocabulary]; None where they were not asked for.
        cache: the cache with the new tokens in it; without values if the model has none.
        outputs: the further outputs that were asked for, by name, in their own dtype (bfloat16
            as float32, which holds it exactly).
    """

    logits: NDArray[np.float32] | None
    cache: Cache
    outputs: dict[str, NDArray[np.generic]]


class Decoder:
    """A causal language model in an onnxruntime session.

    Attributes:
        session: the session.
        io: the roles of its inputs and outputs.
    """

    def __init__(self, session: ort.InferenceSession, io: DecoderIO | None = None) -> None:
        """Wrap a session.

        Args:
            session: of the model, or of a clone of it with further outputs.
            io: as found from the original; by default found from the session alone, which fails
                for exports that leave the cache's head size symbolic (see `open_decoder`).

        Raises:
            FptqError: not a causal language model.
        """
        self.session = session
        self.io = io or DecoderIO.from_specs(session_inputs(session), session_outputs(session))

    def forward(
        self,
        ids: NDArray[np.int64],
        cache: Cache | None = None,
        outputs: Sequence[str] = (),
        *,
        logits: bool = True,
    ) -> Step:
        """Feed tokens, all of them attended to (no padding).

        Args:
            ids: int64 [batch, sequence], sequence >= 1.
            cache: of the tokens before; None starts anew.
            outputs: names of further outputs to return.
            logits: whether to fetch the logits.

        Returns:
            The logits of every position fed, the new cache and the outputs asked for.

        Raises:
            FptqError: the shape does not suit the model, a cache is given to a model without one,
                or onnxruntime refuses the run.
        """
        io = self.io
        batch, sequence = self._check(ids, cache)
        past = cache.length if cache is not None else 0
        values = token_feeds(io, ids, past, past + sequence)
        for tensor in io.cache:
            values[tensor.past] = cache.values[tensor.past] if cache else empty_cache(tensor, batch)
        names = [tensor.present for tensor in io.cache]
        names += [io.logits.name] if logits else []
        names += [name for name in outputs if name not in names]
        try:
            fetched = self.session.run_with_ort_values(names, values)
        except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
            raise FptqError(
                f"onnxruntime could not run the model on {sequence} tokens after {past}: "
                f"{first_line(error)}"
            ) from error
        results = dict(zip(names, fetched, strict=True))
        new_cache = Cache(
            past + sequence, batch, {tensor.past: results[tensor.present] for tensor in io.cache}
        )
        return Step(
            np.asarray(array_of(results[io.logits.name]), np.float32) if logits else None,
            new_cache,
            {name: array_of(results[name]) for name in outputs},
        )

    def _check(self, ids: NDArray[np.int64], cache: Cache | None) -> tuple[int, int]:
        if ids.ndim != 2 or ids.size == 0:
            raise ValueError(f"token ids must be a non-empty [batch, sequence], got {ids.shape}")
        batch, sequence = ids.shape
        if self.io.fixed_batch not in (None, batch):
            raise FptqError(
                f"the model was exported for exactly {self.io.fixed_batch} sequences at a time, "
                f"not {batch}; export it with a dynamic batch size"
            )
        if self.io.fixed_sequence not in (None, sequence):
            raise FptqError(
                f"the model was exported for exactly {self.io.fixed_sequence} tokens at a time, "
                f"not {sequence}; export it with a dynamic sequence length"
            )
        if cache is not None and not self.io.has_cache:
            raise FptqError(
                "the model has no KV cache; export it with past_key_values inputs to feed it "
                "token by token"
            )
        if cache is not None and cache.batch != batch:
            raise ValueError(f"a cache of {cache.batch} sequences cannot go on with {batch}")
        return batch, sequence


def token_feeds(
    io: DecoderIO, ids: NDArray[np.int64], past: int, total: int
) -> dict[str, ort.OrtValue]:
    """Inputs of a run but for the cache: ids [batch, sequence] after `past` of `total` tokens."""
    batch = ids.shape[0]
    feeds = {io.input_ids.name: ids.astype(io.input_ids.dtype)}
    positions = np.arange(past, total)
    if io.attention_mask is not None:
        dtype = np.dtype(io.attention_mask.dtype)
        feeds[io.attention_mask.name] = np.ones((batch, total), dtype)
    if io.position_ids is not None:
        rows = np.broadcast_to(positions, (batch, len(positions)))
        feeds[io.position_ids.name] = rows.astype(io.position_ids.dtype)
    if io.cache_position is not None:
        feeds[io.cache_position.name] = positions.astype(io.cache_position.dtype)
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in feeds.items()
    }


def array_of(value: ort.OrtValue) -> NDArray[Any]:
    """The array in an OrtValue, which itself refuses to give out bfloat16."""
    if value.element_type() != _ONNX_BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    shape = value.shape()
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.float32)
    raw = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    # bfloat16 is the upper half of a float32; the shift also copies, so `value` may go.
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def empty_cache(tensor: CacheTensor, batch: int) -> ort.OrtValue:
    """The cache before any token: no position along the sequence axis."""
    shape = list(tensor.shape)
    if shape[tensor.batch_axis] == 1:
        shape[tensor.batch_axis] = batch
    if tensor.dtype == "bfloat16":
        raw = np.zeros(shape, np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, tensor.dtype))


def open_decoder(path: Path, *, threads: int | None = None) -> Decoder:
    """Open an exported or converted model for running.

    Args:
        path: an .onnx file, or a folder with one; genai_config.json and config.json beside it are
            read for what the graph leaves open.
        threads: intra-op threads, None for onnxruntime's choice.

    Raises:
        FptqError: nothing there, not a causal language model, or onnxruntime refuses it.
    """
    model_file = find_model_file(path)
    session = open_session(model_file, threads=threads)
    return Decoder(session, find_io(model_file, session_inputs(session), session_outputs(session)))
