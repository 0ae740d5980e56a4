"""Does an export compute what the torch model does? Run in ONNX Runtime, and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.runtime.session import first_line, open_session

# Both compute in float32, so they differ by rounding: some 1e-6 of the largest value a layer, more
# with activation outliers. A wrong mask, position or weight is off by 1e-1.
TOLERANCE = 1e-3
_PREFILL = 5


def check_export(
    model_file: Path, reference: Path, *, causal: bool, output: str = "", threads: int = 0
) -> float:
    """Largest difference from torch, relative to torch's largest value.

    A decoder is fed some tokens at once and the others one by one with its cache.

    Args:
        model_file: the export.
        reference: what `save_torch_reference` wrote.
        causal: a decoder, whose logits are compared.
        output: of an encoder, what is compared.
        threads: intra-op threads, 0 lets ONNX Runtime choose.

    Raises:
        FptqError: ONNX Runtime cannot load or run it, or the difference exceeds TOLERANCE.
    """
    with np.load(reference) as saved:
        ids = saved["input_ids"]
        expected = saved["logits" if causal else output]
    if causal:
        got = _decode(model_file, ids, threads)
    else:
        got = _encode(model_file, ids, output, threads)
    if got.shape != expected.shape:
        raise FptqError(
            f"the export gives {list(got.shape)} where torch gives {list(expected.shape)}: "
            "try another --exporter"
        )
    difference = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:  # NaN too
        raise FptqError(
            f"the export is wrong: it differs from the torch model by {difference:.1e} of the "
            f"largest output (allowed {TOLERANCE:.0e}): try another --exporter"
        )
    return difference


def _decode(model_file: Path, ids: NDArray[np.int64], threads: int) -> NDArray[np.float32]:
    decoder = open_decoder(model_file, threads=threads)
    step = decoder.forward(ids[:, :_PREFILL])
    parts = [step.logits]
    for position in range(_PREFILL, ids.shape[1]):
        step = decoder.forward(ids[:, position : position + 1], step.cache)
        parts.append(step.logits)
    return np.concatenate([part for part in parts if part is not None], axis=1)


def _encode(
    model_file: Path, ids: NDArray[np.int64], output: str, threads: int
) -> NDArray[np.float32]:
    session = open_session(model_file, threads=threads)
    feeds = {
        spec.name: {"input_ids": ids, "attention_mask": np.ones_like(ids)}.get(
            spec.name, np.zeros_like(ids)
        )
        for spec in session.get_inputs()
    }
    try:
        return np.asarray(session.run([output], feeds)[0], np.float32)
    except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
        raise FptqError(
            f"ONNX Runtime cannot run the export ({first_line(error)}): try another --exporter"
        ) from error
