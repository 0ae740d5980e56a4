"""Greedy text from a model folder, one token at a time with the KV cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from fptq_onnx.decoder import Decoder, open_decoder
from fptq_onnx.detokenize import StreamingDetokenizer
from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import find_model_file, read_special_ids
from fptq_onnx.text import check_vocabulary, load_tokenizer


@dataclass(frozen=True)
class RunStats:
    """What one run took.

    Attributes:
        prompt_tokens: tokens of the prompt, with BOS.
        tokens: tokens generated, without the one that ended the text.
        prefill_seconds: from the prompt to the first token.
        decode_tokens_per_second: of the tokens after the first; None if there were none.
    """

    prompt_tokens: int
    tokens: int
    prefill_seconds: float
    decode_tokens_per_second: float | None


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


def run_prompt(
    folder: Path,
    prompt: str,
    max_new_tokens: int,
    stream: TextIO,
    *,
    echo: bool = False,
    tokenizer_folder: Path | None = None,
    threads: int | None = None,
) -> RunStats:
    """Write what the model says after `prompt` to `stream`, as it comes.

    Args:
        folder: of the model with its tokenizer and configuration files, or the .onnx file in it.
        prompt: text; may be empty where the model has a BOS id.
        max_new_tokens: tokens at most.
        stream: flushed after each piece.
        echo: write the prompt first, once the model is ready.
        tokenizer_folder: with tokenizer.json, where it is not beside the model.
        threads: intra-op threads, None for onnxruntime's choice.

    Raises:
        FptqError: no model or tokenizer there, a model without KV cache, or see `generate`.
    """
    model_file = find_model_file(folder)
    tokenizer = load_tokenizer(tokenizer_folder or model_file.parent)
    special = read_special_ids(model_file.parent)
    decoder = open_decoder(model_file, threads=threads)
    check_vocabulary(tokenizer, decoder.io.vocab_size or special.vocab_size, "the model")
    ids = [] if special.bos is None else [special.bos]
    ids += tokenizer.encode(prompt, add_special_tokens=False).ids
    if echo:
        _write(stream, prompt)
    text = StreamingDetokenizer(tokenizer, ids)
    tokens = generate(
        decoder, ids, max_new_tokens, eos=special.eos, context_length=special.context_length
    )
    start = first = last = time.perf_counter()
    count = 0
    for token in tokens:
        last = time.perf_counter()
        first = last if count == 0 else first
        count += 1
        _write(stream, text.push(token))
    _write(stream, text.finish())
    return RunStats(
        prompt_tokens=len(ids),
        tokens=count,
        prefill_seconds=(first if count else time.perf_counter()) - start,
        decode_tokens_per_second=(count - 1) / (last - first) if count > 1 else None,
    )


def _write(stream: TextIO, piece: str) -> None:
    if piece:
        stream.write(piece)
        stream.flush()
