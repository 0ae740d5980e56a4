"""Where a decoder's time goes, operator by operator, and how much of the memory's speed it uses.

    fptq-onnx convert MODEL -o CONVERTED
    cmake -S . -B build/native -DFPTQ_DEV=ON
    cmake --build build/native --target fptq_machine_limits
    python benchmarks/profile_ops.py CONVERTED --limits build/native/fptq_machine_limits

Prints ONNX Runtime's own profile of a prefill and of decode steps as `fptq-onnx run` makes them,
and for decode the bytes a step must read (every weight but embedding tables, and the KV cache)
over its time, beside what as many threads read at most, in turn with it several times: memory that
others share is not the same from one second to the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.kv.base import SequenceCache, pieces
from fptq_onnx.generation.kv.open import open_generation_model
from fptq_onnx.model_io.load import load_model

_LOOKUPS = {"Gather", "GatherBlockQuantized", "GatherElements"}


_PREFILLS = 3  # that are counted, after one that warms up
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Phase:
    """One kind of run.

    Attributes:
        name: "prefill" or "decode".
        seconds: of a run, seen from outside and without the profiler; the median.
        operators: microseconds of a run in each operator type.
        rest: microseconds of a run inside ONNX Runtime but in no operator.
    """

    name: str
    seconds: float
    operators: Mapping[str, float]
    rest: float


def _runs(events: Sequence[Event]) -> list[tuple[float, float]]:
    return sorted((event["ts"], event["dur"]) for event in events if event["name"] == "model_run")


def time_by_operator(
    events: Sequence[Event], runs: Sequence[tuple[float, float]]
) -> tuple[dict[str, float], float]:
    """Microseconds in each operator type during some runs, and in no operator.

    Args:
        events: ONNX Runtime's profile.
        runs: start and duration of runs that follow each other.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("the profile holds no such run")
    start, end = runs[0][0], sum(runs[-1])
    operators: dict[str, float] = defaultdict(float)
    for event in events:
        if start <= event["ts"] < end and event["name"].endswith("_kernel_time"):
            operators[event["args"]["op_name"]] += event["dur"]
    return dict(operators), sum(duration for _, duration in runs) - sum(operators.values())


def step_bytes(model: ir.Model) -> int:
    """Bytes of weights every step reads: of all initializers but tables that are looked up in."""
    total = 0
    for value in model.graph.initializers.values():
        readers = [use.node.op_type for use in value.uses()]
        if value.const_value is not None and not set(readers) <= _LOOKUPS:
            total += value.const_value.nbytes
    return total


def cache_bytes(model: ir.Model, depth: int) -> int:
    """Bytes of keys and values for so many tokens."""
    total = 0
    for value in model.graph.inputs:
        shape = value.shape
        if "past" not in (value.name or "") or shape is None or len(shape) != 4:
            continue
        heads, size = shape[1], shape[3]
        if isinstance(heads, int) and isinstance(size, int) and value.dtype is not None:
            total += heads * size * depth * value.dtype.itemsize
    return int(total)


def profile(path: Path, *, tokens: int, depth: int, steps: int, threads: int) -> list[Phase]:
    """Run a model's prefill and decode, without the profiler and with it.

    Raises:
        FptqError: see open_generation_model.
    """
    length = max(tokens, depth + 2 * steps + 2)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "ops")
        plain = open_generation_model(path, threads=threads)
        watched = open_generation_model(path, threads=threads, options=options)
        prompt = np.random.default_rng(0).integers(0, plain.decoder.io.vocab_size or 100, length)
        ids = prompt.tolist()
        seconds: dict[str, float] = {}
        for opened in (watched, plain):  # plain second: its seconds are kept
            rows = opened.cache(max_length=length)
            rows.append(ids[:tokens])
            seconds["prefill"] = _median(lambda: _anew(rows, ids[:tokens]), _PREFILLS)  # noqa: B023
            _anew(rows, ids[:depth])
            rows.decode(ids[:1])
            seconds["decode"] = _median(lambda: rows.decode(ids[:1]), steps)  # noqa: B023
        events = json.loads(Path(watched.decoder.session.end_profiling()).read_text())
    chunks = [len(piece[0]) for piece in pieces(ids[:tokens], plain.decoder.io)]
    fills = [len(piece[0]) for piece in pieces(ids[:depth], plain.decoder.io)]
    first = len(chunks)
    last = first + _PREFILLS * len(chunks)
    runs = _runs(events)
    return [
        _phase("prefill", seconds, events, runs[first:last], _PREFILLS),
        _phase("decode", seconds, events, runs[last + len(fills) + 1 :], steps),
    ]


def _anew(rows: SequenceCache, ids: list[int]) -> None:
    rows.remove(0)
    rows.append(ids)


def _median(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _phase(
    name: str,
    seconds: Mapping[str, float],
    events: Sequence[Event],
    runs: Sequence[tuple[float, float]],
    repeats: int,
) -> Phase:
    operators, rest = time_by_operator(events, runs)
    by_operator = {key: value / repeats for key, value in operators.items()}
    return Phase(name, seconds[name], by_operator, rest / repeats)


def read_rates(
    path: Path, limits: Path, *, depth: int, steps: int, threads: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of a decode step, and the GB/s that so many threads read around it, by round.

    Raises:
        FptqError: see open_generation_model.
    """
    opened = open_generation_model(path, threads=threads)
    rows = opened.cache(max_length=depth + steps + 1)
    ids = np.random.default_rng(0).integers(0, opened.decoder.io.vocab_size or 100, depth).tolist()
    rows.append(ids)
    found = []
    before = _read_rate(limits, threads)
    for _ in range(rounds):
        rows.truncate(0, depth)
        rows.decode(ids[:1])
        seconds = _median(lambda: rows.decode(ids[:1]), steps)
        after = _read_rate(limits, threads)
        found.append((seconds, (before + after) / 2))
        before = after
    return found


def _read_rate(limits: Path, threads: int) -> float:
    command = [str(limits), str(threads), "read"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["read"])


def print_phase(phase: Phase) -> None:
    """A table of a phase, the dearest operator first; what is below a hundredth is one line."""
    total = sum(phase.operators.values()) + phase.rest
    print(f"\n{phase.name}: {phase.seconds * 1e3:.2f} ms, {total * 1e-3:.2f} ms with the profiler")
    few = 0.0
    for name, time_ in sorted(phase.operators.items(), key=lambda item: -item[1]):
        if time_ < total / 100:
            few += time_
        else:
            print(f"  {name:<36} {time_ * 1e-3:>9.2f} ms {time_ / total:>6.1%}")
    print(f"  {'other operators':<36} {few * 1e-3:>9.2f} ms {few / total:>6.1%}")
    print(f"  {'between operators':<36} {phase.rest * 1e-3:>9.2f} ms {phase.rest / total:>6.1%}")


def print_shares(needed: int, rounds: Sequence[tuple[float, float]]) -> None:
    """What share of the memory's speed a step used, the median of the rounds and their range."""
    shares = sorted(needed * 1e-9 / seconds / most for seconds, most in rounds)
    rate = statistics.median(needed * 1e-9 / seconds for seconds, _ in rounds)
    most = statistics.median(most for _, most in rounds)
    print(
        f"  {rate:.1f} GB/s beside {most:.1f} GB/s that can be read, in turn {len(rounds)} times:"
    )
    print(f"  {statistics.median(shares):.2f} of them ({shares[0]:.2f} to {shares[-1]:.2f})")


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limits", type=Path, help="the built fptq_machine_limits")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="with --limits")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    try:
        graph = load_model(options.model, allow_quantized=True).model
        for threads in options.threads:
            print(f"\n{threads} thread{'s' if threads > 1 else ''}")
            phases = profile(
                options.model, tokens=options.prefill, depth=options.depth,
                steps=options.steps, threads=threads,
            )  # fmt: skip
            for phase in phases:
                print_phase(phase)
            needed = step_bytes(graph) + cache_bytes(graph, options.depth)
            rate = needed / phases[-1].seconds * 1e-9
            print(f"  a step must read {needed * 1e-6:.0f} MB: {rate:.1f} GB/s")
            if options.limits:
                rounds = read_rates(
                    options.model, options.limits, depth=options.depth, steps=options.steps,
                    threads=threads, rounds=options.rounds,
                )  # fmt: skip
                print_shares(needed, rounds)
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
