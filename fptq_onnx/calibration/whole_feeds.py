"""Complete inputs for running a model over calibration samples without a cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.calibration.data import Source, TokenWindows
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.runtime.decoder import empty_cache, token_feeds
from fptq_onnx.runtime.decoder_io import decoder_io_of

# Tokens in a batch of windows: enough for fast matrix products, few enough for attention scores.
_BATCH_TOKENS = 2048

Feed = dict[str, ort.OrtValue]


def whole_feeds(loaded: LoadedModel, source: Source) -> list[Feed]:
    """Every sample once, windows of equal length several at a time.

    Raises:
        FptqError: the model is not one these samples suit.
    """
    if not isinstance(source, TokenWindows):
        return [
            {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
             for name, array in feed.items()}
            for feed in source.samples
        ]  # fmt: skip
    io = decoder_io_of(loaded)
    alone = io.position_ids is None and rotates_one_row(loaded)
    feeds = []
    for ids in _batches(source.windows, 1 if alone else io.fixed_batch, io.fixed_sequence):
        feed = token_feeds(io, ids, 0, ids.shape[1])
        feed.update({tensor.past: empty_cache(tensor, len(ids)) for tensor in io.cache})
        feeds.append(feed)
    if not feeds:
        raise FptqError(
            f"the model takes exactly {io.fixed_sequence} tokens at a time, every calibration "
            f"sample has fewer: give longer text or a larger --max-seq-len"
        )
    return feeds


def rotates_one_row(loaded: LoadedModel) -> bool:
    """Whether rotary embeddings are applied from tables made for a batch of one.

    ONNX's RotaryEmbedding without positions wants tables of the batch's size. torch exports make
    them from positions the graph counts itself, for one row: larger batches cannot be run.
    """
    return any(
        node.op_type == "RotaryEmbedding"
        and domain_of(node) == ""
        and (len(node.inputs) < 4 or node.inputs[3] is None)
        for node in loaded.model.graph
    )


def _batches(
    windows: list[NDArray[np.int64]], fixed_batch: int | None, fixed_sequence: int | None
) -> Iterator[NDArray[np.int64]]:
    if fixed_sequence is not None:
        windows = [window[:fixed_sequence] for window in windows if len(window) >= fixed_sequence]
    by_length: dict[int, list[NDArray[np.int64]]] = {}
    for window in windows:
        by_length.setdefault(len(window), []).append(window)
    for length, same in by_length.items():
        count = max(1, _BATCH_TOKENS // length) if fixed_batch is None else fixed_batch
        for start in range(0, len(same), count):
            some = same[start : start + count]
            if fixed_batch is not None:
                some = [some[i % len(some)] for i in range(fixed_batch)]
            yield np.stack(some)
