"""Evaluate a model on a text file: the tasks, their data, and what is refused before long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError, NoDecoderError
from fptq_onnx.evaluation.lambada import (
    LastWordFigures,
    Passage,
    last_word_figures,
    score_passages,
    split_passages,
)
from fptq_onnx.evaluation.perplexity import (
    WindowFigures,
    compare_windows,
    figures_against_reference,
    figures_alone,
    measure_windows,
)
from fptq_onnx.evaluation.settings import LASTWORD, PERPLEXITY, EvalSettings
from fptq_onnx.model_io.finite_json import finite
from fptq_onnx.model_io.hf_config import find_model_file, read_special_ids
from fptq_onnx.model_io.model_folder import side_file
from fptq_onnx.progress import track
from fptq_onnx.runtime.decoder import Decoder, open_decoder
from fptq_onnx.text.tokenizer import TOKENIZER_FILE, TextTokenizer
from fptq_onnx.text.windows import cut_windows, first_tokens, read_documents

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        model: path as given.
        reference: path as given, None without one.
        data: path as given.
        window: tokens in a window.
        prefix: ids before each document.
        suffix: ids after each document, of windows alone.
        perplexity: figures over windows, None where not asked for.
        lastword: figures of last words, None where not asked for.
    """

    model: str
    reference: str | None
    data: str
    window: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    perplexity: WindowFigures | None
    lastword: LastWordFigures | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: estimates as {"value", "standard_error"}, infinities as null."""
        data = {"onnxruntime": onnxruntime.__version__, **asdict(self)}
        return {key: finite(value) for key, value in data.items()}


def evaluate_model(
    model: Path,
    settings: EvalSettings,
    *,
    reference: Path | None = None,
    threads: int = 0,
    quiet: bool = False,
) -> Evaluation:
    """Evaluate any ONNX decoder, next to another one of the same vocabulary if one is given.

    Args:
        model: a .onnx file or a folder with one.
        settings: the data and how they are used.
        reference: what `model` was made from, or any model with the same tokens.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress.

    Raises:
        FptqError: a model, its tokenizer or the data cannot be used together.
    """
    paths = [model] if reference is None else [model, reference]
    source = _Source.of(paths, settings)
    tasks = settings.chosen_tasks
    # The text before the models: a wrong file name should not cost the time to open them.
    passages = _passages(source, settings) if LASTWORD in tasks else []
    ids = _tokens(source, settings) if PERPLEXITY in tasks else None
    decoders = [_open(path, threads) for path in paths]
    _check_vocabularies(decoders, source, passages, ids)
    # A graph with a fixed number of tokens cannot be fed more; 1 is a decode step, refused later.
    fixed = [size for decoder in decoders if (size := decoder.io.fixed_sequence or 0) > 1]
    window = min([source.window, *fixed])

    def progress(items: Sequence[T], what: str) -> Iterator[T]:
        return track(items, total=len(items), what=what, quiet=quiet)

    perplexity = lastword = None
    if ids is not None:
        windows = cut_windows(ids, window)[: settings.max_windows]
        perplexity = _measure(decoders, progress(windows, "evaluating windows"))
    if passages:
        room = min([*fixed, *source.contexts], default=None)
        steps = progress(passages, "predicting last words")
        lastword = last_word_figures(list(score_passages(decoders, steps, room)))
    return Evaluation(
        model=str(model),
        reference=None if reference is None else str(reference),
        data=str(settings.data),
        window=window,
        prefix=source.tokenizer.prefix,
        suffix=source.tokenizer.suffix,
        perplexity=perplexity,
        lastword=lastword,
    )


@dataclass(frozen=True)
class _Source:
    """How text becomes the models' tokens."""

    tokenizer: TextTokenizer  # whose vocabulary is not known before the models are
    vocab_size: int | None  # as the files beside the model say
    contexts: tuple[int, ...]  # tokens the models were made for, where that is known
    window: int

    @classmethod
    def of(cls, paths: Sequence[Path], settings: EvalSettings) -> _Source:
        """From the files beside the models; the first folder with a tokenizer decides."""
        folders = [find_model_file(path).parent for path in paths]
        have = [folder for folder in folders if side_file(folder, TOKENIZER_FILE).is_file()]
        where = settings.tokenizer_folder or [*have, folders[0]][0]
        tokenizer = TextTokenizer.open(where, None)
        known = [read_special_ids(folder) for folder in folders]
        contexts = tuple(special.context_length for special in known if special.context_length)
        return cls(
            tokenizer=tokenizer if settings.bos else tokenizer.alone(),
            vocab_size=known[0].vocab_size,
            contexts=contexts,
            window=min([settings.window, *contexts]),
        )


def _tokens(source: _Source, settings: EvalSettings) -> NDArray[np.int64]:
    ids = first_tokens(
        settings.data,
        source.tokenizer,
        None if settings.max_windows is None else settings.max_windows * source.window,
        text_field=settings.text_field,
    )
    around = [*source.tokenizer.prefix, *source.tokenizer.suffix]
    if np.count_nonzero(~np.isin(ids, around)) < 2:  # nothing of the text before what is predicted
        raise FptqError(f"{settings.data} has no text to predict; give a longer one")
    return ids


def _passages(source: _Source, settings: EvalSettings) -> list[Passage]:
    documents, _ = read_documents(settings.data, text_field=settings.text_field)
    if not documents:
        raise FptqError(f"{settings.data} has no text to predict; give passages of several words")
    return split_passages(documents[: settings.max_windows], source.tokenizer)


def _open(path: Path, threads: int) -> Decoder:
    try:
        return open_decoder(path, threads=threads)
    except FptqError as error:
        if isinstance(error, NoDecoderError):
            error = error.advised("evaluate an export with token ids as input and logits as output")
        raise FptqError(f"{path}: {error}") from error


def _check_vocabularies(
    decoders: Sequence[Decoder],
    source: _Source,
    passages: Sequence[Passage],
    ids: NDArray[np.int64] | None,
) -> None:
    sizes = [decoder.io.vocab_size for decoder in decoders]
    if len(sizes) == 2 and None not in sizes and sizes[0] != sizes[1]:
        raise FptqError(
            f"the model's vocabulary has {sizes[0]} tokens and the reference's {sizes[1]}; compare "
            "a model with the one it was converted from"
        )
    tokenizer = source.tokenizer.of_model(sizes[0] or source.vocab_size)
    for passage in passages:
        tokenizer.known([*passage.context, *passage.word])
    if ids is not None:
        tokenizer.known(ids.tolist())


def _measure(decoders: Sequence[Decoder], windows: Iterable[NDArray[np.int64]]) -> WindowFigures:
    if len(decoders) == 1:
        return figures_alone(list(measure_windows(decoders[0], windows)))
    return figures_against_reference(list(compare_windows(decoders[1], decoders[0], windows)))
