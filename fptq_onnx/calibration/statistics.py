"""The statistics a conversion starts from: given, read from files, or measured on samples."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import LoadedModel, fingerprint
from fptq_onnx.progress import track
from fptq_onnx.runtime.run_context import RunContext
from fptq_onnx.scheme.activation_stats import ActivationStats

# Far fewer than the channels of any layer, GPTQ's Hessian are of low rank.
_FEW_TOKENS = 512


def statistics_of(
    loaded: LoadedModel,
    samples: Samples,
    known: ActivationStats | Sequence[Path],
    context: RunContext,
) -> ActivationStats:
    """Statistics as given, read from files, or measured now.

    Args:
        loaded: the model.
        samples: to measure on.
        known: statistics; or paths, several of which are merged, while a single one that does not
            exist yet is measured for and written.
        context: threads and progress; its log receives lines about what was done.

    Raises:
        FptqError: a file is missing, damaged or of another model, or calibration fails.
    """
    if isinstance(known, ActivationStats):
        return known
    paths = [Path(path) for path in known]
    if paths and (len(paths) > 1 or paths[0].exists()):
        return _read(loaded, paths, context)
    measured = _measure(loaded, samples, context)
    if paths:
        measured.save(paths[0])
    return measured


def _read(loaded: LoadedModel, paths: Sequence[Path], context: RunContext) -> ActivationStats:
    merged = functools.reduce(
        ActivationStats.merged, (ActivationStats.load(path) for path in paths)
    )
    names = ", ".join(str(path) for path in paths)
    if merged.model not in ("", fingerprint(loaded.model)):
        raise FptqError(
            f"the statistics in {names} are of another model: measure them for this one, "
            f"with --stats and the name of a new file"
        )
    context.log(f"calibration  not run: statistics of {merged.samples} samples from {names}")
    if not merged.know_sizes:
        context.log(
            "warning      the statistics are of an earlier version and hold no sizes of "
            "tokens: static scales that a few huge tokens set are not noticed, measure anew"
        )
    return merged


def _measure(loaded: LoadedModel, samples: Samples, context: RunContext) -> ActivationStats:
    started = time.monotonic()
    source = samples.open(loaded, context)
    stats = collect(
        loaded,
        source,
        description=samples.kind or str(samples.describe()["source"]),
        threads=context.threads,
        track=lambda items, total: track(
            items, total=total, what="calibrating", quiet=not context.progress
        ),
    )
    windows = source.windows if isinstance(source, TokenWindows) else None
    tokens = "" if windows is None else f" of up to {samples.max_seq_len} tokens"
    context.log(
        f"calibration  {stats.samples} samples{tokens} from {stats.source} "
        f"({time.monotonic() - started:.1f} s)"
    )
    count = None if windows is None else sum(window.size for window in windows)
    if count is not None and count < _FEW_TOKENS:
        context.log(
            f"warning      {count} tokens are few to calibrate on: weights fitted to them "
            f"serve other text badly, give at least {_FEW_TOKENS}"
        )
    return stats
