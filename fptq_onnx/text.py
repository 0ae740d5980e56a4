"""Text to windows of tokens: documents, the tokenizer, and the cut.

A window is what calibration and evaluation feed: documents' tokens, each document headed by the
beginning-of-sequence id where the model has one, joined and cut to equal lengths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TextIO

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fptq_onnx.downloaded_file import check_downloaded
from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import SpecialIds, read_special_ids
from fptq_onnx.model_folder import side_file
from fptq_onnx.text_encoding import read_text, text_encoding

__all__ = [
    "SpecialIds",
    "check_vocabulary",
    "cut_windows",
    "first_tokens",
    "first_windows",
    "load_tokenizer",
    "read_documents",
    "read_special_ids",
]

TEXT_SUFFIXES = (".txt", ".jsonl")

# A line of its own between documents: the convention of the TinyStories files, after GPT-2's token.
_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*$", re.MULTILINE)

MIN_LAST_WINDOW = 16  # tokens; a shorter rest would be mostly first-token effects
_CUT_MARGIN = 16  # tokens dropped where a document was cut: a merge could reach over the cut
_CHARS_PER_TOKEN = 8  # generous: English BPE gives 3 to 5


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The model's tokenizer. Encode with `add_special_tokens=False`: the caller puts BOS.

    Raises:
        FptqError: no tokenizer.json, or one that cannot be read.
    """
    path = side_file(folder, "tokenizer.json")
    check_downloaded(path)
    if not path.is_file():
        raise FptqError(
            f"no tokenizer.json in {folder}, and text cannot be read without it; copy the model's "
            "there, or name it with --tokenizer"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(read_text(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise FptqError(f"cannot read {path}: {error}") from error
    # Both may be stored in the file, and either would change what a text's tokens are.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(tokenizer: tokenizers.Tokenizer, vocab_size: int | None, what: str) -> None:
    """Refuse a tokenizer that can give ids the model has no embedding for.

    Args:
        tokenizer: the tokenizer.
        vocab_size: ids the model knows; None skips the check.
        what: the model, for the message.

    Raises:
        FptqError: the tokenizer's largest id is not below vocab_size.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if vocab_size is not None and largest >= vocab_size:
        raise FptqError(
            f"the tokenizer has ids up to {largest} but {what} knows only {vocab_size}; "
            "put the model's own tokenizer.json beside it"
        )


def check_bos(bos: int | None, vocab_size: int | None) -> None:
    """Refuse a beginning-of-sequence id that the model has no embedding for.

    Args:
        bos: the id; None skips the check.
        vocab_size: ids the model knows; None skips the check.

    Raises:
        FptqError: bos is not below vocab_size.
    """
    if bos is not None and vocab_size is not None and bos >= vocab_size:
        raise FptqError(
            f"the beginning-of-sequence token {bos} is beyond the model's {vocab_size} tokens: "
            "correct bos_token_id in the config.json (or genai_config.json) beside it"
        )


def read_documents(
    path: Path, *, text_field: str = "text", max_chars: int | None = None
) -> tuple[list[str], bool]:
    """The documents of a text file, without the white space around them.

    Args:
        path: .txt, documents separated by lines `<|endoftext|>` (the whole is one document if there
            is no such line); or .jsonl, one JSON object a line. UTF-8, or UTF-16 with its mark.
        text_field: the field of a .jsonl object that holds the text.
        max_chars: read about so many characters at most.

    Returns:
        The documents that are not empty, and whether the file goes on after them.

    Raises:
        FptqError: unreadable, not UTF-8, a .jsonl line that is not an object with the field.
    """
    try:
        check_downloaded(path, web_pages=False)
        with path.open(encoding=text_encoding(path)) as file:
            if path.suffix.lower() == ".jsonl":
                documents, more = _read_jsonl(file, path, text_field, max_chars)
            else:
                text = file.read(-1 if max_chars is None else max_chars)
                documents, more = _SEPARATOR.split(text), bool(file.read(1))
    except OSError as error:
        raise FptqError(f"cannot read the text {path}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise FptqError(
            f"{path} is not UTF-8 text ({getattr(error, 'reason', error)}); save it as UTF-8"
        ) from error
    return [stripped for document in documents if (stripped := document.strip())], more


def _read_jsonl(
    file: TextIO, path: Path, field: str, max_chars: int | None
) -> tuple[list[str], bool]:
    documents: list[str] = []
    read = 0
    for number, line in enumerate(file, start=1):
        if max_chars is not None and read >= max_chars:
            return documents, True
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FptqError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or field not in record:
            raise FptqError(
                f'{path} line {number} has no field "{field}"; name the field that holds the text '
                "with --text-field"
            )
        if not isinstance(record[field], str):
            raise FptqError(f'{path} line {number}: the field "{field}" is not text')
        documents.append(record[field])
        read += len(line)
    return documents, False


def first_tokens(
    path: Path,
    tokenizer: tokenizers.Tokenizer,
    count: int | None,
    *,
    bos: int | None,
    text_field: str = "text",
) -> NDArray[np.int64]:
    """The first tokens of a text, BOS in front of each document.

    No more of the text is read and tokenized than is needed, however large the file.

    Args:
        path: .txt or .jsonl.
        tokenizer: the model's.
        count: tokens wanted, at least 1; None for all.
        bos: id in front of each document, or None.
        text_field: see `read_documents`.

    Returns:
        int64 [n], n <= count; n < count only where the text has no more.

    Raises:
        FptqError: see `read_documents`.
    """
    if count is None:
        documents, _ = read_documents(path, text_field=text_field)
        return np.asarray(_encode(documents, tokenizer, bos, None), np.int64)
    max_chars = count * _CHARS_PER_TOKEN + 1024
    while True:
        documents, more = read_documents(path, text_field=text_field, max_chars=max_chars)
        ids = _encode(documents, tokenizer, bos, count + _CUT_MARGIN)
        if more:
            ids = ids[: max(len(ids) - _CUT_MARGIN, 0)]
        if len(ids) >= count or not more:
            return np.asarray(ids[:count], np.int64)
        max_chars *= 4


def _encode(
    documents: list[str], tokenizer: tokenizers.Tokenizer, bos: int | None, enough: int | None
) -> list[int]:
    head = [] if bos is None else [bos]
    ids: list[int] = []
    for document in documents:
        ids += head + tokenizer.encode(document, add_special_tokens=False).ids
        if enough is not None and len(ids) >= enough:
            break
    return ids


def cut_windows(ids: NDArray[np.int64], length: int) -> list[NDArray[np.int64]]:
    """Cut tokens into windows.

    Args:
        ids: int64 [n].
        length: tokens in a window, at least 1.

    Returns:
        Windows of `length` tokens; the last may be shorter, and is dropped if it has fewer than
        MIN_LAST_WINDOW and is not the only one. Nothing for no tokens.
    """
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    if len(windows) > 1 and len(windows[-1]) < min(MIN_LAST_WINDOW, length):
        windows.pop()
    return windows


def first_windows(
    path: Path,
    folder: Path,
    *,
    count: int,
    length: int,
    text_field: str = "text",
    vocab_size: int | None = None,
) -> list[NDArray[np.int64]]:
    """The first windows of a text with a model folder's tokenizer, as evaluation takes them.

    Args:
        path: .txt or .jsonl.
        folder: holds tokenizer.json and the configuration files.
        count: windows wanted.
        length: tokens in a window.
        text_field: see `read_documents`.
        vocab_size: ids the model knows, to check the tokenizer against; None to take it from the
            configuration files.

    Raises:
        FptqError: no tokenizer, one too large for the model, or a text that cannot be read or is
            empty.
    """
    tokenizer = load_tokenizer(folder)
    special = read_special_ids(folder)
    check_vocabulary(tokenizer, vocab_size or special.vocab_size, "the model")
    ids = first_tokens(path, tokenizer, count * length, bos=special.bos, text_field=text_field)
    if not len(ids):
        raise FptqError(f"the text {path} is empty")
    return cut_windows(ids, length)
