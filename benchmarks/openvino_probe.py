"""Time an ONNX model in OpenVINO: python openvino_probe.py FOLDER LOAD_AS_JSON.

OpenVINO reads com.microsoft's MatMulNBits and GroupQueryAttention; activations are quantized at run
time in groups of 32, as its CPU plugin does for compressed weights unless told otherwise.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.benchmarking.worker import Load, Metrics, measure, read_load
from fptq_onnx.model_io.hf_config import find_model_file


def probe(folder: Path, load: Load) -> Metrics:
    """Measure in this process."""
    import openvino as ov

    started = time.perf_counter()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
    if load.threads:
        options["INFERENCE_NUM_THREADS"] = load.threads
    compiled = ov.Core().compile_model(str(find_model_file(folder)), "CPU", options)
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - started
    model = json.loads((folder / "genai_config.json").read_text())["model"]
    ids = np.random.default_rng(0).integers(0, model["vocab_size"], load.longest())
    past = [port for port in compiled.inputs if "past" in port.any_name]
    present = [port for port in compiled.outputs if "present" in port.any_name]
    heads = (model["decoder"]["num_key_value_heads"], model["decoder"]["head_size"])
    held = {"length": 0}

    def feed(batch: int, tokens: np.ndarray[Any, Any]) -> None:
        held["length"] += tokens.shape[1]
        request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
        mask = np.ones((batch, held["length"]), np.int64)
        request.set_tensor("attention_mask", ov.Tensor(mask))
        request.infer()
        for source, target in zip(present, past, strict=True):
            request.set_tensor(target, ov.Tensor(request.get_tensor(source).data))

    def begin(batch: int, tokens: int) -> None:
        held["length"] = 0
        for port in past:
            request.set_tensor(
                port, ov.Tensor(np.zeros((batch, heads[0], 0, heads[1]), np.float32))
            )
        feed(batch, np.tile(ids[:tokens], (batch, 1)))

    return measure(
        load, load_seconds=seconds, prefill=lambda tokens: begin(1, tokens), fill=begin,
        step=lambda batch: feed(batch, np.tile(ids[:1], (batch, 1))),
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asdict(probe(Path(sys.argv[1]), read_load(sys.argv[2])))))
