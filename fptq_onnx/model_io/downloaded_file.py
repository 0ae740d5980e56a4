"""What is found in place of a file that was not really downloaded."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from fptq_onnx.errors import FptqError

_HEAD = 1024  # bytes; a Git LFS pointer has about 130
_LFS = b"version https://git-lfs.github.com/spec/"
_XET = b"# xet version"
_ANNEX = b"/annex/objects/"
_HTML = re.compile(
    rb"(\s*(<!--.*?-->|<\?xml[^>]*\?>))*\s*(<!doctype html|<html|<head|<body|<title)",
    re.IGNORECASE | re.DOTALL,
)
_BINARY = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"GGUF": "a GGUF model: give an ONNX model",
}
_SHOWN = 60  # characters of a text that stands where a model should be


def check_downloaded(path: Path, *, web_pages: bool = True) -> None:
    """Refuse a file that only stands for the one that was meant.

    Args:
        path: any file; one that does not exist is passed over, a link whose target is missing not.
        web_pages: look for saved web pages as well.

    Raises:
        FptqError: a link to nothing, a pointer of Git LFS or git-annex, or a saved web page.
    """
    if path.is_symlink() and not path.exists():
        raise FptqError(
            f"{path} is a link to {path.readlink()}, which is missing: download it again"
        )
    try:
        head = read_head(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FptqError(f"cannot read {path}: {error.strerror or error}") from error
    if head.startswith(_LFS):
        raise FptqError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, "
            f"or download it again"
        )
    if head.startswith(_XET):
        raise FptqError(f"{path} is a pointer, not the file itself: download it again")
    if head.startswith(_ANNEX):
        raise FptqError(
            f"{path} is a git-annex pointer, not the file itself: run `git annex get` in its folder"
        )
    if web_pages and _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise FptqError(
            f"{path} is a web page (HTML), not the file itself: perhaps a login or an error page "
            f"was saved under its name; download it again"
        )


def check_model_downloaded(path: Path) -> None:
    """Refuse what is plainly no ONNX model: see check_downloaded; or a text, or an archive.

    Args:
        path: what should be a .onnx file.

    Raises:
        FptqError: one sentence that says what it is instead.
    """
    check_downloaded(path)
    head = read_head(path)
    if not head:
        raise FptqError(f"{path} is not an ONNX model but an empty file: download or export again")
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise FptqError(f"{path} is not an ONNX model but {what}")
    try:  # the last character may be cut
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return
    # An ONNX model begins with its version, a byte below 32; a text has no such bytes.
    if all(c.isprintable() or c in "\r\n\t" for c in text):
        first = text.strip().splitlines()[0][:_SHOWN] if text.strip() else ""
        raise FptqError(
            f"{path} is not an ONNX model but a text that begins with {first!r}: download or "
            f"export it again"
        )


def read_head(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(_HEAD)
