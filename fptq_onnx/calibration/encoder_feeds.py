"""Token windows as complete inputs of an encoder: hidden states or classes are its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.feeds import Feeds, Sample
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.runtime.decoder_io import gives_logits

_TYPES = "token_type_ids"
_KNOWN = {"input_ids", "attention_mask", _TYPES, "position_ids"}


def encoder_feeds(
    windows: TokenWindows,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    is_bidirectional: Callable[[Sample], bool] = lambda sample: False,
) -> Feeds | None:
    """One sample for each window: all tokens attended to, all of the first type.

    Args:
        windows: of token ids.
        inputs: what the model must be fed.
        outputs: what it gives.
        is_bidirectional: asked with a sample where inputs and outputs leave both answers: logits
            over the vocabulary, and no token types. See bidirectional.py.

    Returns:
        Feeds, or None for a model that is fed as a decoder, or has inputs that are not known here.
        Classifiers are encoders.
    """
    names = {spec.name for spec in inputs}
    if not names <= _KNOWN or "input_ids" not in names:
        return None
    largest = max(int(ids.max()) for ids in windows.windows)
    samples = [_sample(ids, inputs) for ids in windows.windows]
    if gives_logits(outputs, largest) and _TYPES not in names:
        if not is_bidirectional(max(samples, key=lambda sample: sample["input_ids"].size)):
            return None
    return Feeds(samples, [_sample(ids, inputs) for ids in windows.verification])


def _sample(ids: NDArray[np.int64], inputs: Sequence[TensorSpec]) -> Sample:
    row = ids[None]
    values = {
        "input_ids": row,
        "attention_mask": np.ones_like(row),
        _TYPES: np.zeros_like(row),
        "position_ids": np.arange(row.shape[1])[None],
    }
    return {spec.name: values[spec.name].astype(spec.dtype) for spec in inputs}
