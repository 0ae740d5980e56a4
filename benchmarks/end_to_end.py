"""Our model beside what else runs 4-bit weights on a CPU, in turn in one run, on the same shapes.

    python tools/make_llama.py build/llama-1b
    fptq-onnx convert build/llama-1b -o build/llama-1b-fptq --calibration random --max-samples 8
    pip install onnxruntime-genai llama-cpp-python gguf openvino
    python benchmarks/end_to_end.py build/llama-1b build/llama-1b-fptq --peers build/peers

What is not installed is left out, with a line that says so. The models of the others are made
once: MatMulNBits in blocks of 32 with int8 activations for onnxruntime-genai, onnxruntime and
OpenVINO, Q4_0 for llama.cpp.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from fptq_onnx.benchmarking.benchmark import Entry, bench_models
from fptq_onnx.benchmarking.benchmark_table import bench_table
from fptq_onnx.benchmarking.ort_quantizer import quantize_stock
from fptq_onnx.benchmarking.worker import Load, probe_command
from fptq_onnx.cli.bench import add_load_options, load_of
from fptq_onnx.errors import FptqError

# The maker of the model and the writer of llama.cpp's file lie among the tools.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

from make_llama import Shape
from write_gguf import write_gguf

_HERE = Path(__file__).parent


def peer_command(script: str, model: Path, load: Load) -> list[str]:
    """The command of one of the probes beside this file."""
    return [sys.executable, str(_HERE / f"{script}.py"), str(model), json.dumps(asdict(load))]


def stock_model(source: Path, peers: Path) -> Path:
    """The float model with MatMulNBits in blocks of 32, made unless it is there."""
    folder = peers / "stock-32"
    if not folder.is_dir():
        work = peers / "stock-32.tmp"
        work.mkdir(parents=True)
        quantize_stock(source, work, 32)
        work.rename(folder)
    return folder


def gguf_model(shape: Shape, peers: Path) -> Path:
    """The same shape with Q4_0 weights, made unless it is there."""
    file = peers / "q4_0.gguf"
    if not file.is_file():
        work = peers / "q4_0.tmp"
        write_gguf(shape, work)
        work.rename(file)
    return file


def shape_of(source: Path) -> Shape:
    """The shape of make_llama's folder; what its genai_config.json does not tell is the default."""
    model = json.loads((source / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = model["decoder"]
    return Shape(
        hidden=decoder["hidden_size"], layers=decoder["num_hidden_layers"],
        heads=decoder["num_attention_heads"], kv_heads=decoder["num_key_value_heads"],
        vocab=model["vocab_size"], context=model["context_length"],
    )  # fmt: skip


def entries(source: Path, converted: Path, peers: Path, only: list[str]) -> list[Entry]:
    """Ours first; then what is installed and asked for."""
    peers.mkdir(parents=True, exist_ok=True)
    stock = partial(stock_model, source, peers)
    gguf = partial(gguf_model, shape_of(source), peers)
    rivals: dict[str, tuple[str, Callable[[], Path]]] = {
        "genai": ("onnxruntime_genai", stock),
        "llama_cpp": ("llama_cpp", gguf),
        "openvino": ("openvino", stock),
    }
    found = [Entry("fptq-onnx", partial(probe_command, converted))]
    if "genai" in only and importlib.util.find_spec("onnxruntime_genai") is not None:
        ours = partial(peer_command, "genai_probe", converted)
        found.append(Entry("fptq-onnx in genai", ours))
    if "onnxruntime" in only:
        found.append(Entry("onnxruntime int4", partial(probe_command, stock())))
    for name, (module, model) in rivals.items():
        if name not in only:
            continue
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed (no module {module}): left out", file=sys.stderr)
            continue
        found.append(Entry(name, partial(peer_command, f"{name}_probe", model())))
    return found


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description="Our model beside others, end to end.")
    parser.add_argument("source", type=Path, help="the float model of make_llama.py")
    parser.add_argument("converted", type=Path, help="what fptq-onnx convert made of it")
    parser.add_argument("--peers", type=Path, required=True, help="folder for the others' models")
    parser.add_argument(
        "--only", nargs="*", default=["genai", "onnxruntime", "llama_cpp", "openvino"]
    )
    add_load_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all metrics")
    options = parser.parse_args()
    try:
        load = load_of(options, [options.converted])
        result = bench_models(
            entries(options.source, options.converted, options.peers, options.only), load,
            threads=tuple(options.threads), rounds=options.rounds, quiet=False,
        )  # fmt: skip
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print("\n".join(bench_table(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
