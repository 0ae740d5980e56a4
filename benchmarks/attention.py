"""Our GroupQueryAttention against ONNX Runtime's, in turn in one run, on the same inputs.

    python benchmarks/attention.py

The KV cache is one buffer that grows in place, as `fptq-onnx run` has it. Prints milliseconds of a
run and the ratio; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fptq_onnx import runtime

_CAPACITY = 4096  # positions of the cache
_DOMAINS = {"ours": "fptq", "ONNX Runtime": "com.microsoft"}
_CACHES = ("past_key", "past_value")


@dataclass(frozen=True)
class Shape:
    """Heads of a model."""

    heads: int
    kv_heads: int
    size: int

    def model(self, domain: str) -> ir.Model:
        """One attention node, everything but the rotary tables an input."""
        names = ["query", "key", "value", *_CACHES, "lengths", "total", "cos", "sin"]
        kinds = {"lengths": ir.DataType.INT32, "total": ir.DataType.INT32}
        values = [
            ir.Value(name=name, type=ir.TensorType(kinds.get(name, ir.DataType.FLOAT)))
            for name in names
        ]
        turns = 10000.0 ** -(np.arange(self.size // 2) / (self.size // 2))
        angles = np.arange(_CAPACITY)[:, None] * turns
        for value, table in zip(values[-2:], (np.cos(angles), np.sin(angles)), strict=True):
            value.const_value = ir.tensor(table.astype(np.float32), name=value.name)
        outputs = [
            ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
            for name in ("output", "present_key", "present_value")
        ]
        attributes = {
            "num_heads": self.heads, "kv_num_heads": self.kv_heads, "do_rotary": 1,
            "rotary_interleaved": 0,
        }  # fmt: skip
        node = ir.node("GroupQueryAttention", values, attributes, domain=domain, outputs=outputs)
        graph = ir.Graph(
            values[:-2], outputs, nodes=[node], initializers=values[-2:],
            opset_imports={"": 21, domain: 1}, name="attention",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


def runner(shape: Shape, domain: str, tokens: int, past: int, threads: int) -> Callable[[], None]:
    """A function that feeds so many tokens after so many in the cache."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runtime.register(options)
    session = ort.InferenceSession(
        ir.to_proto(shape.model(domain)).SerializeToString(), options,
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    for name, heads in (("query", shape.heads), ("key", shape.kv_heads), ("value", shape.kv_heads)):
        x = rng.normal(size=(1, tokens, heads * shape.size)).astype(np.float32)
        binding.bind_cpu_input(name, x)
    binding.bind_cpu_input("lengths", np.array([past + tokens - 1], np.int32))
    binding.bind_cpu_input("total", np.array(past + tokens, np.int32))
    for name in _CACHES:
        cache = rng.normal(size=(1, shape.kv_heads, _CAPACITY, shape.size)).astype(np.float32)
        value = ort.OrtValue.ortvalue_from_numpy(cache)
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past", "present"), value)
    binding.bind_output("output", "cpu")
    return lambda: session.run_with_iobinding(binding)


def main() -> None:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    options = parser.parse_args()
    print("| threads | heads | tokens after | ours, ms | ONNX Runtime, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for threads in options.threads:
        for shape in (Shape(32, 4, 64), Shape(32, 8, 128), Shape(16, 16, 64)):
            for tokens, past in ((512, 0), (512, 1024), (1, 128), (1, 1024), (1, 3000)):
                works = [runner(shape, d, tokens, past, threads) for d in _DOMAINS.values()]
                times: list[list[float]] = [[] for _ in works]
                end = time.perf_counter() + options.seconds
                while time.perf_counter() < end or len(times[-1]) < 5:
                    for work, list_ in zip(works, times, strict=True):
                        started = time.perf_counter()
                        work()
                        list_.append(time.perf_counter() - started)
                ours, stock = (statistics.median(list_[1:]) * 1e3 for list_ in times)
                heads = f"{shape.heads} of {shape.size}, {shape.kv_heads} of keys"
                print(
                    f"| {threads} | {heads} | {tokens} after {past} | {ours:.3f} | {stock:.3f} "
                    f"| {stock / ours:.2f}x |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
