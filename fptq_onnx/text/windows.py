"""Text to windows of tokens: documents, their tokens, and the cut.

A window is what calibration and evaluation feed: documents' tokens, each document with what the
tokenizer puts around a text (a beginning-of-sequence id, or nothing), joined and cut to equal
lengths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.downloaded_file import check_downloaded
from fptq_onnx.model_io.hf_config import read_special_ids
from fptq_onnx.model_io.text_encoding import text_encoding
from fptq_onnx.text.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "cut_windows",
    "first_tokens",
    "first_windows",
    "load_tokenizer",
    "read_documents",
]

TEXT_SUFFIXES = (".txt", ".jsonl")

# A line of its own between documents: the convention of the TinyStories files, after GPT-2's token.
_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*$", re.MULTILINE)

MIN_LAST_WINDOW = 16  # tokens; a shorter rest would be mostly first-token effects
_CUT_MARGIN = 16  # tokens dropped where a document was cut: a merge could reach over the cut
_CHARS_PER_TOKEN = 8  # generous: English BPE gives 3 to 5


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
        FptqError: unreadable, not UTF-8, a .jsonl file that is a web page, or a line of one that is
            not an object with the field.
    """
    try:
        lines = path.suffix.lower() == ".jsonl"
        check_downloaded(path, web_pages=lines)  # a page saved as .txt is a text
        with path.open(encoding=text_encoding(path)) as file:
            if lines:
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
    path: Path, tokenizer: TextTokenizer, count: int | None, *, text_field: str = "text"
) -> NDArray[np.int64]:
    """The first tokens of a text, each document with what the tokenizer puts around a text.

    No more of the text is read and tokenized than is needed, however large the file.

    Args:
        path: .txt or .jsonl.
        tokenizer: the model's.
        count: tokens wanted, at least 1; None for all.
        text_field: see `read_documents`.

    Returns:
        int64 [n], n <= count; n < count only where the text has no more.

    Raises:
        FptqError: see `read_documents`; or a token that the model does not know.
    """
    if count is None:
        documents, _ = read_documents(path, text_field=text_field)
        return np.asarray(_encode(documents, tokenizer, None), np.int64)
    max_chars = count * _CHARS_PER_TOKEN + 1024
    margin = _CUT_MARGIN + len(tokenizer.suffix)
    while True:
        documents, more = read_documents(path, text_field=text_field, max_chars=max_chars)
        ids = _encode(documents, tokenizer, count + margin)
        if more:
            ids = ids[: max(len(ids) - margin, 0)]
        if len(ids) >= count or not more:
            return np.asarray(ids[:count], np.int64)
        max_chars *= 4


def _encode(documents: list[str], tokenizer: TextTokenizer, enough: int | None) -> list[int]:
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document)
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
        FptqError: no tokenizer, one of another model, or a text that cannot be read, is empty, or
            has a token that the model does not know.
    """
    tokenizer = TextTokenizer.open(folder, vocab_size or read_special_ids(folder).vocab_size)
    ids = first_tokens(path, tokenizer, count * length, text_field=text_field)
    if not len(ids):
        raise FptqError(f"the text {path} is empty")
    return cut_windows(ids, length)
