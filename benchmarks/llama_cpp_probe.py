"""Time a GGUF file in llama.cpp: python llama_cpp_probe.py FILE LOAD_AS_JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fptq_onnx.benchmarking.worker import Load, Metrics, measure, read_load


def probe(file: Path, load: Load) -> Metrics:
    """Measure in this process; one sequence at a time.

    Raises:
        SystemExit: a batch larger than one is asked for.
    """
    import llama_cpp

    if max(load.batches) > 1:
        raise SystemExit("llama_cpp_probe times one sequence at a time: give --batch 1")
    threads = load.threads or None
    started = time.perf_counter()
    model = llama_cpp.Llama(
        str(file), n_ctx=load.longest(), n_batch=512, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    ids = np.random.default_rng(0).integers(0, model.n_vocab(), load.longest()).tolist()

    def prefill(tokens: int) -> None:
        model.reset()
        model.eval(ids[:tokens])

    return measure(
        load, load_seconds=seconds, prefill=prefill,
        fill=lambda batch, tokens: prefill(tokens), step=lambda batch: model.eval(ids[:1]),
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asdict(probe(Path(sys.argv[1]), read_load(sys.argv[2])))))
