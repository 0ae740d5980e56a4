"""Greedy tokens from a decoder, one at a time with the KV cache: the plain way, all logits kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.decoder import Decoder


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    eos: Collection[int] = (),
    context_length: int | None = None,
) -> Iterator[int]:
    """Go on from a prompt with the most likely token each time.

    Args:
        decoder: a model with a KV cache.
        prompt: ids, at least one.
        max_new_tokens: tokens at most.
        eos: ids that end the text; they are not given out.
        context_length: tokens the model can hold, prompt included.

    Yields:
        Token ids.

    Raises:
        FptqError: no KV cache, an empty prompt, one that fills the context, or logits with NaN.
    """
    if not decoder.io.has_cache:
        raise FptqError(
            "cannot generate text: the model has no KV cache; export it with past_key_values inputs"
        )
    if not prompt:
        raise FptqError("the prompt is empty and the model has no beginning token; give a prompt")
    if context_length is not None:
        room = context_length - len(prompt)
        if room < 1:
            raise FptqError(
                f"the prompt has {len(prompt)} tokens, but the model's context is "
                f"{context_length}; shorten it"
            )
        max_new_tokens = min(max_new_tokens, room)
    cache = None
    ids = np.asarray(prompt, np.int64)
    for _ in range(max_new_tokens):
        step = decoder.forward(ids[None], cache)
        assert step.logits is not None
        scores = step.logits[0, -1]
        if np.isnan(scores).any():
            raise FptqError("the model gave NaN for the next token; its weights are out of range")
        token, cache = int(scores.argmax()), step.cache
        if token in eos:
            return
        yield token
        ids = np.asarray([token], np.int64)
