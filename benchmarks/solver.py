"""What solving one linear costs: python benchmarks/solver.py [K N [block_size]] (4096 11008 128).

Random weights, and moments of random inputs whose channels are of different sizes and depend on
each other; prints seconds, CPU seconds, and the memory at its largest, the moments included.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from fptq_onnx.benchmarking.worker import peak_bytes
from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.numerics.hessian import Hessian

_TOKENS = 1024  # in a batch


def random_moments(k: int, rng: np.random.Generator) -> Hessian:
    """Of at least 2 K tokens, as a float and a slightly different quantized model see them."""
    moments = Hessian.empty(k)
    sizes = np.exp(rng.standard_normal(k, dtype=np.float32))
    for _ in range(0, 2 * k, _TOKENS):
        x = rng.standard_normal((_TOKENS, k), dtype=np.float32)
        x[:, 1:] += 0.5 * x[:, :-1]
        x *= sizes
        moments.add(x + 0.01 * rng.standard_normal(x.shape, dtype=np.float32), x)
    return moments


def main() -> int:
    """The command of this module's text."""
    k, n, block_size = (*map(int, sys.argv[1:]), *(4096, 11008, 128)[len(sys.argv) - 1 :])
    rng = np.random.default_rng(0)
    moments = random_moments(k, rng)
    w = rng.standard_normal((k, n), dtype=np.float32) * np.float32(k**-0.5)
    before, started, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    quantize_gptq(w, moments, block_size)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"{k} x {n}, blocks of {block_size}: {seconds:.0f} s, {cpu:.0f} s of CPU, "
        f"{peak_bytes() / 1e9:.2f} GB at most ({before / 1e9:.2f} before)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
