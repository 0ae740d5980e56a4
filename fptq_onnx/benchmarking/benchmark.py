"""Measure several runtimes or models in turn, so that all see the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fptq_onnx.benchmarking.worker import Figures, Load, probe_command, run_apart
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.model_io.model_folder import model_name
from fptq_onnx.progress import track


@dataclass(frozen=True)
class Entry:
    """One model or runtime of a benchmark.

    Attributes:
        name: shown.
        command: gives the command of a process that prints Figures; see `probe_command`.
    """

    name: str
    command: Callable[[Load], list[str]]


@dataclass(frozen=True)
class Result:
    """Rounds of measurements.

    Attributes:
        names: of the entries, the first is what the others are compared with.
        threads: thread counts.
        rounds: by threads, then by round: the figures of each entry.
    """

    names: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: Mapping[int, Sequence[Sequence[Figures]]]

    def lines(self) -> list[tuple[int, str, str]]:
        """All (threads, kind, key) there are, in order; key is "" for load and memory."""
        found = []
        for threads in self.threads:
            figures = self.rounds[threads][0][0]
            found += [(threads, "prefill", key) for key in figures.prefill]
            found += [(threads, "decode", key) for key in figures.decode]
            found += [(threads, "load", ""), (threads, "memory", "")]
        return found

    def values(self, line: tuple[int, str, str], entry: int) -> list[float]:
        """What each round measured; [] where the entry has no such figure."""
        threads, kind, key = line
        values = [_value(figures[entry], kind, key) for figures in self.rounds[threads]]
        return [value for value in values if value is not None]

    def ratio(self, line: tuple[int, str, str], entry: int) -> float | None:
        """Median over rounds of the first entry's figure over this one's of the same round."""
        pairs = zip(self.values(line, 0), self.values(line, entry), strict=False)
        ratios = [one / other for one, other in pairs if other]
        return statistics.median(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "names": list(self.names),
            "rounds": {
                str(threads): [[asdict(figures) for figures in one] for one in rounds]
                for threads, rounds in self.rounds.items()
            },
            "ratios": [
                {"threads": line[0], "what": line[1], "at": line[2], "versus": name,
                 "ratio": self.ratio(line, index)}
                for line in self.lines() for index, name in enumerate(self.names) if index
            ],
        }  # fmt: skip


def _value(figures: Figures, kind: str, key: str) -> float | None:
    if kind == "load":
        return figures.load_seconds
    if kind == "memory":
        return float(figures.peak_bytes)
    return (figures.prefill if kind == "prefill" else figures.decode).get(key)


def bench_models(
    entries: Sequence[Entry],
    load: Load,
    *,
    threads: Sequence[int],
    rounds: int,
    quiet: bool = True,
) -> Result:
    """Measure all entries in turn, `rounds` times over, for each number of threads.

    Args:
        entries: what to measure.
        load: what to time; its own number of threads is not used.
        threads: numbers of threads, 0 for the runtime's choice.
        rounds: at least 1.
        quiet: show no progress.

    Raises:
        FptqError: a model cannot be run.
    """
    found: dict[int, list[list[Figures]]] = {count: [] for count in threads}
    order = [
        (count, number, entry)
        for count in threads for number in range(rounds) for entry in entries
    ]  # fmt: skip
    for count, number, entry in track(order, total=len(order), what="timing in turn", quiet=quiet):
        if number == len(found[count]):
            found[count].append([])
        command = entry.command(replace(load, threads=count))
        found[count][number].append(Figures(**run_apart(command, entry.name)))
    return Result(tuple(entry.name for entry in entries), tuple(threads), found)


def entries_of(models: Sequence[Path]) -> list[Entry]:
    """ONNX models under names that tell them apart.

    Raises:
        FptqError: a path without a model.
    """
    entries: list[Entry] = []
    for path in models:
        name = model_name(find_model_file(path))  # known now rather than after the first rounds
        taken = {entry.name for entry in entries}
        shown = str(path) if name in taken else name
        entries.append(Entry(shown, partial(probe_command, path)))
    return entries


@dataclass(frozen=True)
class Speed:
    """How fast one model generates; medians over the rounds.

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


def _median(figures: Sequence[Figures]) -> Speed:
    decodes = [rate for one in figures for rate in one.decode.values()]
    return Speed(
        statistics.median(one.load_seconds for one in figures),
        statistics.median(rate for one in figures for rate in one.prefill.values()),
        statistics.median(decodes) if decodes else None,
        int(statistics.median(one.peak_bytes for one in figures)),
    )
