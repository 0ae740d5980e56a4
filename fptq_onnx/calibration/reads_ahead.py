"""Whether a model with logits for each token is an encoder, which reads tokens on both sides.

Logits over the vocabulary are what a decoder gives, and an encoder for masked tokens as well, which
is not to be judged by the next token, and writes no text. Two things tell them apart:

    config.json         its class under architectures is ...ForMaskedLM
    the model itself    an encoder's first logits change with the tokens after, a decoder's do not
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.model_configs import is_masked_model, read_config
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.session import open_session_in_memory

_FEW = 8  # tokens, so that each counts
# A decoder masks what comes after to exactly nothing; this is room for float16 sums.
_CHANGE = 1e-4


def reads_both_sides(
    loaded: LoadedModel, logits: str, sample: Mapping[str, NDArray[Any]], *, threads: int = 0
) -> bool:
    """Whether a model without a cache is an encoder.

    Args:
        loaded: the model.
        logits: its output [batch, sequence, vocabulary].
        sample: complete inputs; input_ids [1, sequence].
        threads: intra-op threads, 0 lets ONNX Runtime choose.
    """
    if is_masked_model(read_config(loaded.folder, "config.json")):
        return True
    session = open_session_in_memory(loaded.model, loaded.data_folder, threads=threads)
    return reads_ahead(session, logits, sample)


def reads_ahead(
    session: ort.InferenceSession, logits: str, sample: Mapping[str, NDArray[Any]]
) -> bool:
    """Whether the first token's logits depend on the tokens after it.

    Args:
        session: of a model without a cache.
        logits: the output [batch, sequence, vocabulary].
        sample: complete inputs; input_ids [1, sequence].

    Returns:
        False too where ONNX Runtime cannot run it, which calibration will say more of.
    """
    ids = sample["input_ids"]
    fixed = any(isinstance(spec.shape[1], int) for spec in session.get_inputs() if spec.shape[1:])
    length = ids.shape[1] if fixed else min(_FEW, ids.shape[1])
    first, second = ids[:, :length].copy(), ids[:, :length].copy()
    first[:, 1:], second[:, 1:] = ids.min(), ids.max()
    if np.array_equal(first, second):
        return False
    rest = {name: array[:, :length] for name, array in sample.items() if name != "input_ids"}
    try:
        before, after = (
            np.asarray(session.run([logits], {"input_ids": tokens, **rest})[0], np.float64)[0, 0]
            for tokens in (first, second)
        )
    except Exception:  # onnxruntime raises its own types and bare RuntimeError
        return False
    return bool(np.abs(after - before).max() > _CHANGE * np.abs(before).max())
