"""A short prompt and the tokens a model writes after it, to compare other machines with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fptq_onnx.decoder import open_decoder
from fptq_onnx.errors import FptqError
from fptq_onnx.generate import generate
from fptq_onnx.model_configs import read_special_ids
from fptq_onnx.text_tokenizer import TOKENIZER_FILE, TextTokenizer, prefix_of

_TEXT = "Once upon a time"
_WITHOUT_TOKENIZER = (3, 1, 4, 1, 5)
_COUNT = 8


def smoke_prompt(folder: Path, vocabulary: int | None) -> tuple[int, ...]:
    """Ids of a few words as `run` feeds them; of nothing in particular without a tokenizer.

    Args:
        folder: of the model.
        vocabulary: ids the model knows, None if it does not say.

    Raises:
        FptqError: the tokenizer cannot be read or is of another model; or see `prefix_of`.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return tuple(TextTokenizer.open(folder, vocabulary).encode(_TEXT))
    limit = vocabulary or 2
    start = prefix_of(folder, read_special_ids(folder), vocabulary)
    return (*start, *(token % limit for token in _WITHOUT_TOKENIZER))


def smoke_tokens(model: Path, prompt: Sequence[int]) -> list[int]:
    """What the model writes after a prompt, the most likely token each time.

    Args:
        model: the .onnx file.
        prompt: ids.

    Returns:
        8 ids; tokens that end a text are ids like others.

    Raises:
        FptqError: ONNX Runtime refuses the model, or it is no language model.
    """
    decoder = open_decoder(model, threads=1)
    if decoder.io.has_cache:
        return list(generate(decoder, prompt, _COUNT))
    ids = list(prompt)
    for _ in range(_COUNT):
        logits = decoder.forward(np.asarray([ids], np.int64)).logits
        if logits is None or np.isnan(logits[0, -1]).any():
            raise FptqError("the model gave NaN for the next token: it cannot be packaged")
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]
