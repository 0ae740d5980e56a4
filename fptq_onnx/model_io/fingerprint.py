"""Tell a model from others by its weights, without reading them all.

Name, type, shape and a few values of every initializer: two trainings, two sizes or two exporters
differ in these, while a copy, or the same graph with its data in other files, does not.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

_PIECES = 8  # of a tensor, spread evenly
_LENGTH = 64  # values of each


def fingerprint(model: ir.Model) -> str:
    """A digest in hexadecimal; of a big model some megabytes are read.

    Args:
        model: loaded, and normalized or not: only models in the same state can be compared.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.numpy().reshape(-1)
        for start in np.linspace(0, max(0, flat.size - _LENGTH), _PIECES, dtype=np.int64):
            digest.update(np.ascontiguousarray(flat[start : start + _LENGTH]).tobytes())
    return digest.hexdigest()
