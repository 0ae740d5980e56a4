"""Where calibration samples come from: random tokens, text, .npz files, or Python iterables.

Every source becomes one of two plain types: `TokenWindows`, which the runner feeds to a language
model as prefill and decode steps, or `Feeds`, complete inputs by name for any model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.feeds import Feeds, feeds_from_iterable, feeds_from_npz
from fptq_onnx.calibration.random_floats import random_floats
from fptq_onnx.decoder_io import find_input_ids
from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import SpecialIds, read_config, read_special_ids
from fptq_onnx.model_folder import side_file
from fptq_onnx.tensor_spec import FLOAT_DTYPES, TensorSpec
from fptq_onnx.text import TEXT_SUFFIXES, cut_windows, first_tokens
from fptq_onnx.text_tokenizer import TOKENIZER_FILE, TextTokenizer, load_tokenizer, prefix_of

__all__ = ["GENERATED", "RANDOM", "Feeds", "Source", "TokenWindows", "open_source"]

RANDOM = "random"
GENERATED = "generated"  # random to begin with: see Samples.open

# Tokens at the end of a window that are fed one by one, so that decode steps with a filled cache
# are part of what is measured. A quarter of a short window at most.
DECODE_STEPS = 8
# Windows set aside to verify on; enough for a difference, too few to cost time.
VERIFICATION_WINDOWS = 8
# Windows are drawn from this many times as many as are wanted: spread over the text, while a large
# file is read no further than that.
_POOL = 4


@dataclass(frozen=True)
class TokenWindows:
    """Token windows for a language model.

    Attributes:
        windows: int64 [n] each, n >= 1; n may differ between them. Never empty.
        decode_steps: how many tokens at the end of each window are to be fed one at a time, with
            the cache that the tokens before them left. It may exceed a short window; at least one
            token must be prefilled. A model without a KV cache is fed whole windows.
        heldout: windows of the same source that are not among `windows`; empty where the source
            has no more.
    """

    windows: list[NDArray[np.int64]]
    decode_steps: int
    heldout: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def verification(self) -> list[NDArray[np.int64]]:
        """Windows to compare models on: held out if there are any, else some that calibrated."""
        return self.heldout or self.windows[:VERIFICATION_WINDOWS]


Source = TokenWindows | Feeds


def open_source(
    spec: str | Path | Iterable[dict[str, Any]] | Any,
    *,
    model_folder: Path,
    inputs: Sequence[TensorSpec],
    vocab_size: int | None,
    max_samples: int,
    max_seq_len: int,
    seed: int = 0,
    text_field: str = "text",
    tokenizer_folder: Path | None = None,
) -> Source:
    """Turn what the user named as calibration data into samples.

    Args:
        spec: "random" or "generated"; the path of a .txt, .jsonl or .npz file or of a folder of
            .npz files; any iterable of dicts of arrays by input name; or an object with
            `get_next() -> dict | None`, as onnxruntime's CalibrationDataReader has.
        model_folder: holds the tokenizer and the configuration files.
        inputs: what the model must be fed.
        vocab_size: ids the model knows (the width of its logits); None to take it from the
            configuration files.
        max_samples: samples at most; further ones of any source are left out.
        max_seq_len: tokens in a window, at most; cut to the model's context length, and set to the
            sequence length where the graph has a fixed one.
        seed: of the random tokens, and of the choice of windows from a text.
        text_field: field of a .jsonl object that holds the text.
        tokenizer_folder: holds the tokenizer where the model's folder has none.

    Returns:
        TokenWindows for random tokens and text, Feeds otherwise; "random" for a model without
        token ids draws normal floats.

    Raises:
        FptqError: nothing there or nothing in it, text for a model that is no language model,
            no tokenizer or the wrong one, a token beyond the vocabulary, or arrays that do not
            fit the inputs.
        ValueError: max_samples or max_seq_len below 1.
    """
    if max_samples < 1 or max_seq_len < 1:
        raise ValueError("max_samples and max_seq_len must be at least 1")
    if not isinstance(spec, (str, Path)):
        return feeds_from_iterable(spec, inputs, max_samples)
    path = Path(spec)
    is_text = path.suffix.lower() in TEXT_SUFFIXES
    if spec not in (RANDOM, GENERATED):
        if not path.exists():
            raise FptqError(
                f"no calibration data at {path}; give a .txt, .jsonl or .npz file, a folder of "
                f".npz files, or one of the words {GENERATED} and {RANDOM}"
            )
        if path.is_dir() or path.suffix.lower() == ".npz":
            return feeds_from_npz(path, inputs, max_samples)
        if not is_text:
            raise FptqError(
                f"cannot calibrate from {path.name}: the name must end in .txt, .jsonl or .npz"
            )
    if (
        spec == RANDOM
        and find_input_ids(inputs, read_config(model_folder, "genai_config.json")) is None
    ):
        rng = np.random.default_rng(seed)
        return random_floats(inputs, max_samples, VERIFICATION_WINDOWS, rng)
    special = read_special_ids(model_folder, tokenizer_folder)
    vocab_size = vocab_size or special.vocab_size
    length, exact = _window_length(inputs, model_folder, special, max_seq_len)
    wanted = _Wanted(
        folder=tokenizer_folder or model_folder,
        special=special,
        vocab_size=vocab_size,
        samples=max_samples,
        length=length,
        exact=exact,
        rng=np.random.default_rng(seed),
    )
    if spec in (RANDOM, GENERATED):
        return _random_windows(wanted)
    return _text_windows(path, wanted, text_field)


@dataclass(frozen=True)
class _Wanted:
    """What windows are to be made."""

    folder: Path
    special: SpecialIds
    vocab_size: int | None
    samples: int
    length: int
    exact: bool  # a shorter window cannot be fed
    rng: np.random.Generator


def _window_length(
    inputs: Sequence[TensorSpec], folder: Path, special: SpecialIds, max_seq_len: int
) -> tuple[int, bool]:
    """Tokens in a window, and whether the graph takes no fewer."""
    ids = find_input_ids(inputs, read_config(folder, "genai_config.json"))
    if ids is None:
        raise FptqError(
            "tokens cannot calibrate this model: it has no input_ids; give .npz files with "
            + ", ".join(spec.describe() for spec in inputs)
            + (
                f", or --calibration {RANDOM} for normal random numbers"
                if _all_floats(inputs)
                else ""
            )
        )
    fixed = ids.shape[1] if ids.rank == 2 and ids.shape else None
    if isinstance(fixed, int) and fixed > 1:
        return fixed, True
    return min(max_seq_len, special.context_length or max_seq_len), False


def _all_floats(inputs: Sequence[TensorSpec]) -> bool:
    return all(spec.dtype in FLOAT_DTYPES for spec in inputs)


def _decode_steps(length: int) -> int:
    return min(DECODE_STEPS, length // 4)


def _random_windows(wanted: _Wanted) -> TokenWindows:
    known = wanted.vocab_size
    if side_file(wanted.folder, TOKENIZER_FILE).is_file():
        # Logits are often padded past the tokenizer's last id; those embeddings were never trained.
        vocabulary = load_tokenizer(wanted.folder).get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=0) + 1
        known = size if known is None else min(known, size)
    if not known:
        raise FptqError(
            "cannot draw random tokens: neither the model nor a config.json says how large the "
            "vocabulary is; give a text or .npz files"
        )
    shape = (wanted.samples + VERIFICATION_WINDOWS, wanted.length)
    windows = list(wanted.rng.integers(0, known, shape, np.int64))
    prefix = prefix_of(wanted.folder, wanted.special, wanted.vocab_size)[: wanted.length]
    for window in windows:
        window[: len(prefix)] = prefix
    cut = wanted.samples
    return TokenWindows(windows[:cut], _decode_steps(wanted.length), windows[cut:])


def _text_windows(path: Path, wanted: _Wanted, text_field: str) -> TokenWindows:
    tokenizer = TextTokenizer.open(wanted.folder, wanted.vocab_size)
    count = (_POOL * wanted.samples + VERIFICATION_WINDOWS) * wanted.length
    ids = first_tokens(path, tokenizer, count, text_field=text_field)
    if not len(ids):
        raise FptqError(f"the calibration text {path} is empty")
    pool = cut_windows(ids, wanted.length)
    if wanted.exact:
        pool = [window for window in pool if len(window) == wanted.length]
        if not pool:
            raise FptqError(
                f"the model takes exactly {wanted.length} tokens at a time, and {path} has only "
                f"{len(ids)}; give a longer text"
            )
    order = wanted.rng.permutation(len(pool))
    cut = wanted.samples
    return TokenWindows(
        [pool[index] for index in sorted(order[:cut])],
        _decode_steps(wanted.length),
        [pool[index] for index in sorted(order[cut : cut + VERIFICATION_WINDOWS])],
    )
