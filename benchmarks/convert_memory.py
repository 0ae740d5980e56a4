"""Peak memory of `convert` on a large generated model with saved statistics.

    python benchmarks/convert_memory.py --gigabytes 4 --limit-mb 700

Makes a decoder-shaped model with that many gigabytes of float32 linears in external data, and
statistics for it. Converts it in a process of its own, whose anonymous resident memory (RssAnon:
what is not file cache) is read from /proc every 10 ms. Fails when the peak is above the limit.
Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange

VOCABULARY, HIDDEN, INTERMEDIATE = 4096, 2048, 5632
LAYER_BYTES = 2 * HIDDEN * INTERMEDIATE * 4
SECONDS_BETWEEN_READINGS = 0.01


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit-mb", type=float, default=700.0)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    layers = max(1, round(options.gigabytes * 1e9 / LAYER_BYTES))
    work = Path(tempfile.mkdtemp(prefix="convert-memory-", dir=options.folder))
    try:
        make_model(work / "model", layers)
        make_statistics(work / "model", work / "stats.npz")
        started = time.monotonic()
        peak, code = peak_of_convert(work)
        seconds = time.monotonic() - started
    finally:
        shutil.rmtree(work)
    size = layers * LAYER_BYTES / 1e9
    print(
        f"{size:.2f} GB of float32 linears: exit code {code}, peak {peak / 1e6:.0f} MB resident "
        f"that is not file cache (limit {options.limit_mb:.0f} MB), {seconds:.0f} s"
    )
    return 0 if code == 0 and peak <= options.limit_mb * 1e6 else 1


def make_model(folder: Path, layers: int) -> None:
    """Embedding, `layers` x (LayerNorm, up, Relu, down, residual), head; written one by one."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    data = open(folder / "weights.bin", "wb")

    def weight(name: str, *shape: int) -> ir.Value:
        array = rng.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
        if len(shape) == 1:
            array = np.ones(shape, np.float32)
        tensor = ir.ExternalTensor(
            "weights.bin",
            data.tell(),
            array.nbytes,
            ir.DataType.FLOAT,
            shape=ir.Shape(shape),
            name=name,
            base_dir=folder,
        )
        data.write(array.tobytes())
        return ir.val(name, const_value=tensor)

    def op(kind: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(kind, list(inputs), name=f"{kind}_{len(nodes)}")
        nodes.append(node)
        node.outputs[0].name = f"value_{len(nodes)}"
        return node.outputs[0]

    nodes: list[ir.Node] = []
    weights = [weight("embedding", VOCABULARY, HIDDEN)]
    ids = ir.val("input_ids", dtype=ir.DataType.INT64, shape=ir.Shape(["batch", "sequence"]))
    x = op("Gather", weights[0], ids)
    for layer in range(layers):
        parts = [
            weight(f"layers.{layer}.norm.weight", HIDDEN),
            weight(f"layers.{layer}.up.weight", HIDDEN, INTERMEDIATE),
            weight(f"layers.{layer}.down.weight", INTERMEDIATE, HIDDEN),
        ]
        weights += parts
        normalized = op("LayerNormalization", x, parts[0])
        x = op("Add", x, op("MatMul", op("Relu", op("MatMul", normalized, parts[1])), parts[2]))
    weights.append(weight("head.weight", HIDDEN, VOCABULARY))
    logits = op("MatMul", x, weights[-1])
    data.close()
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(["batch", "sequence", VOCABULARY])
    graph = ir.Graph(
        [ids], [logits], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="large"
    )
    ir.save(ir.Model(graph, ir_version=10), folder / "model.onnx")


def make_statistics(model: Path, path: Path) -> None:
    """Ranges for every linear's input: equalized inputs of up, per-token inputs of down."""
    loaded = load_model(model)
    normalize(loaded.model)
    rng = np.random.default_rng(1)
    ranges = {}
    for linear in find_linears(loaded.model).linears:
        high = rng.uniform(1, 100 if linear.k == HIDDEN else 1000, linear.k).astype(np.float32)
        ranges[linear.x.name or ""] = ChannelRange(-high, high)
    ActivationStats(ranges, 1, "generated").save(path)


def peak_of_convert(work: Path) -> tuple[int, int]:
    """Convert in a process of its own; its peak RssAnon in bytes and its exit code."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fptq_onnx", "convert", str(work.resolve() / "model")),
            *("-o", str(work.resolve() / "out"), "--stats", str(work.resolve() / "stats.npz")),
            *("--max-seq-len", "32", "--verify-samples", "1"),
        ],
        cwd=work,  # not the source tree, which would hide an installed package
    )
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(SECONDS_BETWEEN_READINGS)
    return peak, process.wait()


if __name__ == "__main__":
    sys.exit(main())
