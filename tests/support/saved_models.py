"""Tiny models in files, with their weights outside as exporters leave them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from support.tiny_graphs import build, weight

DATA_NAME = "weights.bin"


def linear_model(opset: int = 18, *, seed: int = 0) -> ir.Model:
    """x [A, 64] -> y [A, 48] -> z [A, 5]; W1 is large, the rest is under 1 KB."""
    rng = np.random.default_rng(seed)
    return build(
        "g (float[A, 64] x) => (float[A, 5] z) {"
        " y = MatMul(x, W1) r = Relu(y) p = MatMul(r, W2) z = Add(p, b) }",
        {"W1": weight(rng, 64, 48), "W2": weight(rng, 48, 5), "b": weight(rng, 5)},
        opset=opset,
    )


def saved(folder: Path, model: ir.Model | None = None, *, external: int | None = 256) -> Path:
    """Write model.onnx, tensors of `external` bytes and more in a data file; None keeps all inside.

    Returns:
        The model file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = linear_model() if model is None else model
    file = folder / "model.onnx"
    if external is None:
        ir.save(model, file)
    else:
        ir.save(model, file, external_data=DATA_NAME, size_threshold_bytes=external)
    return file


def redirect(file: Path, tensor: str, **entries: str) -> None:
    """Rewrite the external-data entries (location, offset, length) of one tensor."""
    proto = onnx.load(file, load_external_data=False)
    found = next(item for item in proto.graph.initializer if item.name == tensor)
    for entry in found.external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    file.write_bytes(proto.SerializeToString())


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and modification time of every file under a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
