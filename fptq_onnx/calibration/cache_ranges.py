"""How large keys and values become: max|x| of every channel of every head of the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.session import first_line, open_session

Feed = Mapping[str, ort.OrtValue]
Tracker = Callable[[Iterable[Feed], int], Iterator[Feed]]
_TOKENS = (0, 2)  # batch and sequence of [batch, kv_heads, sequence, size]


def cache_ranges(
    model_file: Path,
    feeds: Sequence[Feed],
    names: Sequence[str],
    *,
    threads: int = 0,
    track: Tracker = lambda items, _: iter(items),
) -> dict[str, NDArray[np.float32]]:
    """Run a model with a cache of floats over samples.

    Args:
        model_file: the model.
        feeds: complete inputs, at least one of them with tokens.
        names: outputs [batch, kv_heads, sequence, size] with keys or values.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        track: wraps the samples to show progress.

    Returns:
        By name, max|x| float32 [kv_heads, size].

    Raises:
        FptqError: a run fails, or gives NaN or infinity.
    """
    session = open_session(model_file, threads=threads or None)
    largest: dict[str, NDArray[np.float32]] = {}
    for feed in track(feeds, len(feeds)):
        try:
            outputs = session.run_with_ort_values(list(names), dict(feed))
        except Exception as error:  # ONNX Runtime raises its own types
            text = f"the written model cannot run on a sample: {first_line(error)}"
            raise FptqError(text) from error
        for name, output in zip(names, outputs, strict=True):
            array = np.abs(output.numpy().astype(np.float32))
            absmax = array.max(axis=_TOKENS, initial=0.0)
            if not np.isfinite(absmax).all():
                raise FptqError(
                    f"NaN or infinity in the KV cache {name}: check that the model runs well on "
                    f"the calibration samples, or leave --kv-cache int8 out"
                )
            largest[name] = np.maximum(largest.get(name, np.float32(0)), absmax)
    return largest
