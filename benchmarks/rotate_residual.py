"""Does rotating the residual stream make a model easier to quantize? Write a rotated float model.

Random signs and a Hadamard matrix Q (QuaRot, arXiv 2404.00456): gains of RMS norms go into the
linears after them, then everything written into the residual stream is multiplied by Q and
everything read from it by its transpose. The function stays the same; convert both models and
compare. docs/accuracy.md tells what came of it.

    python benchmarks/rotate_residual.py path/to/model rotated
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.save import MODEL_FILE, save_model
from fptq_onnx.model_io.tokenizer_files import copy_side_files
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.progress import tracker

_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")


def hadamard(size: int, seed: int = 0) -> NDArray[np.float64]:
    """An orthogonal [size, size]: Sylvester's matrix with random signs; size a power of two."""
    if size & (size - 1):
        raise SystemExit(f"the hidden size must be a power of two, this model has {size}")
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size)
    return signs[:, None] * found / np.sqrt(size)


def rotate(model: ir.Model) -> tuple[int, int]:
    """Rotate the residual stream in place; how many linears read it and how many write it."""
    sites = find_fold_sites(find_linears(model).linears)
    gains = {
        site.name: site.operands[0].constant.load().astype(np.float32)
        for site in sites.values()
        if isinstance(site, FoldSite)
    }
    fold_into_producers(model, gains)
    linears = find_linears(model).linears
    readers = [linear for linear in linears if _is_norm(linear.x)]
    writers = [linear for linear in linears if _feeds_a_norm(linear.output)]
    q = hadamard(readers[0].k)
    for linear in readers:
        _replace(linear, q.T @ linear.weight.load())
    for linear in writers:
        if linear.bias is not None:
            raise SystemExit(f"{linear.path} has a bias, which this script does not rotate")
        _replace(linear, linear.weight.load() @ q)
    for node in model.graph:
        if node.op_type == "Gather" and _feeds_a_norm(node.outputs[0]):
            table = constant_of(node.inputs[0])
            assert table is not None
            array = (table.load().astype(np.float64) @ q).astype(table.dtype.numpy())
            node.inputs[0].const_value = ir.Tensor(array, name=table.name)  # type: ignore[union-attr]
    return len(readers), len(writers)


def _is_norm(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in _NORMS


def _feeds_a_norm(value: ir.Value) -> bool:
    return any(use.node.op_type in _NORMS for use in value.uses())


def _replace(linear: Linear, w: NDArray[np.floating]) -> None:
    replace_weight(linear, ir.Tensor(w.astype(linear.weight.dtype.numpy())))


def main() -> None:
    """Read, rotate, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    loaded = load_model(options.model)
    normalize(loaded.model)
    readers, writers = rotate(loaded.model)
    options.output.mkdir(parents=True)
    save_model(loaded.model, options.output, tracker("writing", quiet=True))
    copy_side_files(loaded.folder, options.output, MODEL_FILE)
    print(f"rotated: {readers} linears read the residual stream, {writers} write it")


if __name__ == "__main__":
    main()
