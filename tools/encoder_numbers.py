"""How far a converted encoder is from the original: by its logits, or by its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.encoder_feeds import encoder_feeds
from fptq_onnx.evaluation.perplexity import compare, compare_outputs
from fptq_onnx.evaluation.window_metrics import window_metrics
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.model_io.tensor_spec import session_inputs, session_outputs
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.session import open_session


@dataclass(frozen=True)
class Numbers:
    """How far a model is from the original.

    error: KL in nats of the logits of all positions; of hidden states, the sum of the squared
        differences over that of the squares, which KL grows with as well.
    top1: share of positions with the same most likely token; None without logits.
    """

    error: float
    top1: float | None


def decoder_numbers(
    reference: Decoder, candidate: Decoder, windows: Sequence[NDArray[np.int64]]
) -> Numbers:
    """Of models that predict the next token."""
    found = compare(reference, candidate, windows)
    return Numbers(found.kl, found.top1)


def encoder_numbers(source: Path, candidate: Path, windows: Sequence[NDArray[np.int64]]) -> Numbers:
    """Of models that read tokens on both sides.

    Args:
        source: folder of the original.
        candidate: folder of the model to judge.
        windows: int64 [n] each, all tokens attended to.
    """
    first, second = (open_session(find_model_file(folder)) for folder in (source, candidate))
    outputs = session_outputs(first)
    feeds = encoder_feeds(
        TokenWindows(list(windows), 0, []), session_inputs(first), outputs, lambda sample: True
    )
    assert feeds is not None
    name = outputs[0].name
    if name != "logits":
        (difference,) = compare_outputs(first, second, feeds.samples, [name])
        return Numbers(10 ** (-difference.sqnr_db / 10), None)
    sums = [
        window_metrics(
            first.run([name], sample)[0][0], second.run([name], sample)[0][0],
            sample["input_ids"][0],
        )
        for sample in feeds.samples
    ]  # fmt: skip
    positions = sum(part.positions for part in sums)
    return Numbers(
        sum(part.kl for part in sums) / positions, sum(part.agreed for part in sums) / positions
    )
