"""Texts as editors leave them: UTF-8, with or without a byte-order mark, or UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from fptq_onnx.downloaded_file import read_head
from fptq_onnx.errors import FptqError

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(head: bytes) -> str:
    """The encoding that a text's first bytes tell; each drops the byte-order mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


def decode(content: bytes) -> str:
    """A text without its byte-order mark.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16 with a mark.
    """
    return content.decode(encoding_of(content))


def text_encoding(path: Path) -> str:
    """The encoding to open a text file with.

    Raises:
        OSError: it cannot be read.
        FptqError: UTF-16 without a byte-order mark, in which nobody says which half comes first.
    """
    head = read_head(path)
    encoding = encoding_of(head)
    if encoding == "utf-8-sig" and b"\0" in head:
        raise FptqError(
            f"{path} holds zero bytes, as UTF-16 text without a byte-order mark does: "
            f"save it as UTF-8"
        )
    return encoding


def read_text(path: Path) -> str:
    r"""The text of a file, lines ended by \n, without a byte-order mark.

    Raises:
        OSError: it cannot be read.
        FptqError: see text_encoding; or it is no text in that encoding.
    """
    encoding = text_encoding(path)
    try:
        return path.read_text(encoding=encoding)
    except UnicodeError as error:
        raise FptqError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def copy_text(source: Path, destination: Path) -> None:
    """Copy a text as UTF-8 without a byte-order mark, which other programs stumble over.

    Raises:
        OSError: a file cannot be read or written.
    """
    content = source.read_bytes()
    try:
        text = decode(content)
    except UnicodeDecodeError:
        destination.write_bytes(content)
        return
    destination.write_bytes(text.encode("utf-8"))
