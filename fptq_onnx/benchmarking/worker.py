r"""Time one model as generation runs it, in a process of its own.

python -m fptq_onnx.benchmarking.worker MODEL \
    '{"prefills": [128], "depths": [128], "batches": [1], ...}'
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.errors import FptqError


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        prefills: tokens of a prompt, each timed by itself.
        depths: tokens before the first of the timed decode steps.
        batches: sequences that decode at once, each with every depth.
        steps: timed decode steps.
        repeats: of a prefill, after one that warms up.
        threads: intra-op threads, 0 for onnxruntime's choice.
    """

    prefills: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = (128,)
    batches: tuple[int, ...] = (1,)
    steps: int = 16
    repeats: int = 3
    threads: int = 0

    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(*self.prefills, max(self.depths) + self.steps + 1)


@dataclass(frozen=True)
class Figures:
    """What one process measured; tokens per second, medians.

    Attributes:
        load_seconds: from the file to a session.
        prefill: by length.
        decode: by "batch x depth", of all sequences together; empty without a KV cache.
        peak_bytes: resident memory of the process at its largest, Python and runtime included.
    """

    load_seconds: float
    prefill: dict[str, float]
    decode: dict[str, float]
    peak_bytes: int


def measure(
    load: Load,
    *,
    load_seconds: float,
    prefill: Callable[[int], None],
    fill: Callable[[int, int], None],
    step: Callable[[int], None] | None,
) -> Figures:
    """Time a runtime through three functions, the same way for each.

    Args:
        load: what to time.
        load_seconds: measured before.
        prefill: feeds one prompt of so many tokens from the beginning, up to its logits.
        fill: makes so many sequences of so many tokens.
        step: feeds each of so many sequences one token, up to its logits; None if it cannot.
    """
    prefills = {}
    for length in load.prefills:
        times = [_seconds(lambda: prefill(length)) for _ in range(1 + load.repeats)]  # noqa: B023
        prefills[str(length)] = length / statistics.median(times[1:])
    decodes = {}
    for batch in load.batches if step else ():
        for depth in load.depths:
            fill(batch, depth)
            assert step is not None
            times = [_seconds(lambda: step(batch)) for _ in range(1 + load.steps)]  # noqa: B023
            decodes[f"{batch}x{depth}"] = batch / statistics.median(times[1:])
    return Figures(load_seconds, prefills, decodes, peak_bytes())


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Resident memory of this process at its largest so far, bytes."""
    # ru_maxrss begins with what the parent process had when this one was started.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def probe(model: Path, load: Load) -> Figures:
    """Measure an ONNX model in this process.

    Raises:
        FptqError: see open_generation_model; or a sequence longer than the model's context.
    """
    from fptq_onnx.generation.kv.open import open_generation_model
    from fptq_onnx.model_io.hf_config import find_model_file, read_special_ids

    context = read_special_ids(find_model_file(model).parent).context_length
    if context is not None and load.longest() > context:
        raise FptqError(
            f"{load.longest()} tokens do not fit into the context of {model}, {context}; "
            "give smaller --prefill and --depth"
        )
    started = time.perf_counter()
    opened = open_generation_model(model, threads=load.threads)
    seconds = time.perf_counter() - started
    vocabulary = opened.decoder.io.vocab_size or 100
    ids = np.random.default_rng(0).integers(0, vocabulary, load.longest()).tolist()
    rows = opened.rows(max_rows=max(load.batches), max_length=load.longest())
    if rows.max_rows < max(load.batches):
        raise FptqError(
            f"{model} holds {rows.max_rows} sequences at a time: give a smaller --batch"
        )

    def clear() -> None:
        while rows.lengths:
            rows.remove(len(rows.lengths) - 1)

    def prefill(length: int) -> None:
        clear()
        rows.append(ids[:length])

    def fill(batch: int, depth: int) -> None:
        clear()
        for _ in range(batch):
            rows.append(ids[:depth])

    def step(batch: int) -> None:
        rows.decode(ids[:batch])

    can_step = opened.decoder.io.has_cache
    return measure(
        load, load_seconds=seconds, prefill=prefill, fill=fill, step=step if can_step else None
    )


def probe_command(model: Path, load: Load) -> list[str]:
    """A command that measures as this module's text says, and imports what this process has.

    `python -m` would import a package of this name that lies in the current folder first: in a
    checkout that is the source, without the library of the installed one.
    """
    start = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; sys.exit(main())"
    return [sys.executable, "-c", start, str(model), json.dumps(asdict(load))]


def run_apart(command: Sequence[str], name: str) -> dict[str, Any]:
    """Run a command that prints figures as JSON, its last line.

    Raises:
        FptqError: it failed, with what it said of what is measured.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FptqError(f"cannot measure {name}: {last}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def read_load(text: str) -> Load:
    """A Load from its JSON."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in json.loads(text).items()
    }
    return Load(**values)


def main() -> int:
    """The command of this module's text."""
    try:
        figures = probe(Path(sys.argv[1]), read_load(sys.argv[2]))
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
