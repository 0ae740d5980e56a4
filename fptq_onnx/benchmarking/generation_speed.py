"""How fast models generate, each in a process of its own, all of them in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fptq_onnx.benchmarking.benchmark import Entry, bench_models
from fptq_onnx.benchmarking.worker import Load, Metrics, probe_command


@dataclass(frozen=True)
class Speed:
    """Of one model; medians over the rounds.

    load_seconds: from the file to a session.
    prefill: tokens per second of a prompt.
    decode: tokens per second after it, one at a time; None for a model without a KV cache.
    peak_bytes: resident memory of the process at its largest, Python and ONNX Runtime included.
    """

    load_seconds: float
    prefill: float
    decode: float | None
    peak_bytes: int


def load_within(context: int | None, prefill: int, decode: int) -> Load:
    """A prompt and decode steps after it, fewer where the context (tokens) is shorter."""
    if context is not None:
        decode = min(decode, max(1, context // 4))
    load = Load((prefill,), (prefill,), steps=decode)
    beyond = 0 if context is None else max(0, load.longest() - context)
    fitting = (max(1, prefill - beyond),)
    return replace(load, prefills=fitting, depths=fitting)


def measure_speeds(
    models: Sequence[Path], load: Load, *, threads: int, rounds: int, quiet: bool = True
) -> list[Speed]:
    """Time the models in turn, `rounds` times over.

    Raises:
        FptqError: a model cannot be run.
    """
    entries = [Entry(path.name, partial(probe_command, path)) for path in models]
    result = bench_models(entries, load, threads=(threads,), rounds=rounds, quiet=quiet)
    return [_median([one[index] for one in result.rounds[threads]]) for index in range(len(models))]


def _median(metrics: Sequence[Metrics]) -> Speed:
    decodes = [rate for one in metrics for rate in one.decode.values()]
    return Speed(
        statistics.median(one.load_seconds for one in metrics),
        statistics.median(rate for one in metrics for rate in one.prefill.values()),
        statistics.median(decodes) if decodes else None,
        int(statistics.median(one.peak_bytes for one in metrics)),
    )
