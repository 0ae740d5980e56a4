"""Give a written model an int8 KV cache: measure its keys and values, then change its graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.calibration.cache_ranges import cache_ranges
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.passes import apply
from fptq_onnx.passes.quantize_cache import find_caches, present_names, quantize_cache
from fptq_onnx.progress import tracker


def check_cache(model: ir.Model) -> None:
    """See before anything is measured that the model has a cache to quantize.

    Raises:
        FptqError: it has none.
    """
    found, declined = find_caches(model)
    if found:
        return
    if declined:
        raise FptqError(f"--kv-cache int8 cannot be done: {declined[0]}")
    raise FptqError(
        "--kv-cache int8 needs a GroupQueryAttention, and the model has none: export it with "
        "onnxruntime-genai's builder (fptq-onnx export --exporter genai), or leave the option out"
    )


def quantize_written_caches(
    model: ir.Model,
    model_file: Path,
    loaded: LoadedModel,
    samples: Samples,
    *,
    threads: int,
    quiet: bool,
) -> tuple[int, tuple[str, ...]]:
    """Measure what the written model keeps, and write its graph again; its data file stays.

    The model that will run is measured, not the original: folds divide values, and rounding moves
    them.

    Args:
        model: as saved: its large tensors refer to the data file beside `model_file`.
        model_file: where it was saved.
        loaded: the original, for the samples.
        samples: what calibration used.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress.

    Returns:
        How many attentions have one now, and why others do not.

    Raises:
        FptqError: the model cannot be run on the samples.
    """
    nodes, _ = find_caches(model)
    names = [name for node in nodes for name in present_names(node)]
    feeds = whole_feeds(loaded, samples.open(loaded, threads=threads, quiet=quiet))
    track = tracker("measuring the KV cache", quiet)
    ranges = cache_ranges(model_file, feeds, names, threads=threads, track=track)
    done = apply(model, [partial(quantize_cache, absmax=ranges)])
    ir.save(done.model, model_file)
    return done.changed, tuple(map(str, done.declined))
