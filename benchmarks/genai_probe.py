"""Time a model folder in onnxruntime-genai: python genai_probe.py FOLDER LOAD_AS_JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.benchmarking.worker import Load, Metrics, measure, read_load


def probe(folder: Path, load: Load) -> Metrics:
    """Measure in this process."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    if load.threads:
        options = {"session_options": {"intra_op_num_threads": load.threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
    started = time.perf_counter()
    model = og.Model(config)
    seconds = time.perf_counter() - started
    vocabulary = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, load.longest()).astype(np.int32)
    state: dict[str, Any] = {}

    def begin(batch: int, tokens: int) -> None:
        state.clear()  # frees the cache of the one before
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=load.longest(), batch_size=batch, do_sample=False)
        state["generator"] = og.Generator(model, params)
        state["generator"].append_tokens(np.tile(ids[:tokens], (batch, 1)))

    def step(batch: int) -> None:
        state["generator"].append_tokens(np.tile(ids[:1], (batch, 1)))

    return measure(
        load, load_seconds=seconds, prefill=lambda tokens: begin(1, tokens), fill=begin, step=step
    )


if __name__ == "__main__":
    print(json.dumps(asdict(probe(Path(sys.argv[1]), read_load(sys.argv[2])))))
