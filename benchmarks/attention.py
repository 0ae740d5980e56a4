"""Our GroupQueryAttention against ONNX Runtime's, in turn in one run, on the same inputs.

    python benchmarks/attention.py [--cache int8]

The KV cache is one buffer that grows in place, as `fptq-onnx run` has it. Prints milliseconds of a
run and the ratio; medians. With a cache of int8 codes ours with float32 takes turns, too.
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

from fptq_onnx.runtime import native_library as runtime

_CAPACITY = 4096  # positions of the cache
_OURS, _STOCK = "fptq", "com.microsoft"
_CACHES = ("past_key", "past_value")


@dataclass(frozen=True)
class Shape:
    """Heads of a model."""

    heads: int
    kv_heads: int
    size: int

    def model(self, domain: str, codes: bool) -> ir.Model:
        """One attention node, everything but the tables an input; `codes`: an int8 cache."""
        names = ["query", "key", "value", *_CACHES, "lengths", "total", "cos", "sin"]
        kinds = {"lengths": ir.DataType.INT32, "total": ir.DataType.INT32}
        cache = ir.DataType.INT8 if codes else ir.DataType.FLOAT
        kinds |= dict.fromkeys((*_CACHES, "present_key", "present_value"), cache)
        values = [
            ir.Value(name=name, type=ir.TensorType(kinds.get(name, ir.DataType.FLOAT)))
            for name in names
        ]
        turns = 10000.0 ** -(np.arange(self.size // 2) / (self.size // 2))
        angles = np.arange(_CAPACITY)[:, None] * turns
        for value, table in zip(values[-2:], (np.cos(angles), np.sin(angles)), strict=True):
            value.const_value = ir.tensor(table.astype(np.float32), name=value.name)
        outputs = [
            ir.Value(name=name, type=ir.TensorType(kinds.get(name, ir.DataType.FLOAT)))
            for name in ("output", "present_key", "present_value")
        ]
        attributes: dict[str, int | str] = {
            "num_heads": self.heads, "kv_num_heads": self.kv_heads, "do_rotary": 1,
            "rotary_interleaved": 0,
        }  # fmt: skip
        inputs: list[ir.Value | None] = list(values)
        tables = values[-2:]
        if codes:
            if domain == _STOCK:
                attributes |= dict.fromkeys(("k_quant_type", "v_quant_type"), "PER_CHANNEL")
                attributes |= {"kv_cache_bit_width": 8}
                inputs += [None, None, None]
            scales = np.full(self.kv_heads * self.size, 0.03, np.float32)
            for name in ("k_scale", "v_scale"):
                value = ir.Value(name=name, const_value=ir.tensor(scales, name=name))
                tables.append(value)
                inputs.append(value)
        node = ir.node("GroupQueryAttention", inputs, attributes, domain=domain, outputs=outputs)
        graph = ir.Graph(
            values[:-2], outputs, nodes=[node], initializers=tables,
            opset_imports={"": 21, domain: 1}, name="attention",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


@dataclass(frozen=True)
class Step:
    """So many new tokens after so many in the cache."""

    tokens: int
    past: int


def runner(
    shape: Shape, domain: str, step: Step, *, threads: int, codes: bool
) -> Callable[[], None]:
    """A function that runs one step."""
    tokens, past = step.tokens, step.past
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runtime.register(options)
    session = ort.InferenceSession(
        ir.to_proto(shape.model(domain, codes)).SerializeToString(), options,
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
        cache = rng.normal(size=(1, shape.kv_heads, _CAPACITY, shape.size))
        cache = (cache * 33).astype(np.int8) if codes else cache.astype(np.float32)
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
    parser.add_argument("--cache", choices=("float32", "int8"), default="float32")
    options = parser.parse_args()
    codes = options.cache == "int8"
    more = (" ours with float32 | ratio |", "---|---|") if codes else ("", "")
    print(f"| threads | heads | tokens after | ours, ms | ONNX Runtime | ratio |{more[0]}")
    print(f"|---|---|---|---|---|---|{more[1]}")
    for threads in options.threads:
        for shape in (Shape(32, 4, 64), Shape(32, 8, 128), Shape(16, 16, 64)):
            for step in (Step(512, 0), Step(512, 1024), Step(1, 128), Step(1, 1024), Step(1, 3000)):
                wanted = [(_OURS, codes), (_STOCK, codes), *([(_OURS, False)] if codes else [])]
                works = [
                    runner(shape, domain, step, threads=threads, codes=coded)
                    for domain, coded in wanted
                ]
                ours, *others = in_turn(works, options.seconds)
                heads = f"{shape.heads} of {shape.size}, {shape.kv_heads} of keys"
                ratios = "".join(f" {other:.3f} | {other / ours:.2f}x |" for other in others)
                what = f"| {threads} | {heads} | {step.tokens} after {step.past}"
                print(f"{what} | {ours:.3f} |{ratios}", flush=True)


def in_turn(works: list[Callable[[], None]], seconds: float) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[-1]) < 5:
        for work, list_ in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            list_.append(time.perf_counter() - started)
    return [statistics.median(list_[1:]) * 1e3 for list_ in times]


if __name__ == "__main__":
    main()
