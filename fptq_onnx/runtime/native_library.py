"""Where the native library is, and how a session gets it."""

from __future__ import annotations

import importlib.resources
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:  # importing onnxruntime takes longer than everything else here
    import onnxruntime

LIBRARY_NAME = "libfptq_ort_ops.so"
LIBRARY_VARIABLE = "FPTQ_ONNX_LIBRARY"
HUGE_PAGES_VARIABLE = "FPTQ_HUGE_PAGES"
# Options that have the library carry this entry: ONNX Runtime refuses sessions with two of a domain
# and cannot be asked which domains it has.
_REGISTERED = "fptq_onnx.library"


def library_path() -> Path:
    """The native library with the fptq ops.

    The environment variable FPTQ_ONNX_LIBRARY names another one than the package's own.

    Returns:
        An absolute path to an existing file.

    Raises:
        FptqError: FPTQ_ONNX_LIBRARY names no file, or the package has no library in it.
    """
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        path = Path(chosen)
        if not path.is_file():
            raise FptqError(f"{LIBRARY_VARIABLE}={chosen} is not a file; correct or unset it")
        return path.resolve()
    # Not next to __file__: in an editable install the library is in another folder.
    resource = importlib.resources.files("fptq_onnx") / "lib" / LIBRARY_NAME
    # A checkout in the working folder hides an installation, which has the library all the same.
    installed = [Path(place) / "fptq_onnx" / "lib" / LIBRARY_NAME for place in sys.path]
    found = [place for place in (Path(str(resource)), *installed) if place.is_file()]
    if not found:
        raise FptqError(
            f"the native library {LIBRARY_NAME} is missing from this installation; "
            f"build it with `pip install .` in a checkout, or set {LIBRARY_VARIABLE} to one built "
            f"by CMake"
        )
    return found[0].resolve()


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make the fptq ops known to sessions that are created with these options.

    A second call with the same options changes nothing.

    Args:
        session_options: changed in place.

    Raises:
        FptqError: the library is missing (see library_path), or ONNX Runtime cannot load it.
    """
    if _has_entry(session_options, _REGISTERED):
        return
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime raises bare RuntimeError and its own types alike
        raise FptqError(
            f"ONNX Runtime could not load {path} ({error}); it needs onnxruntime 1.20 or newer "
            "and a library built for this machine"
        ) from error
    session_options.add_session_config_entry(_REGISTERED, str(path))


def prefer_huge_pages() -> None:
    """Have the ops of this process copy their weights into huge pages, unless its user chose.

    Decoding is then up to a fifth faster; the copies are memory that processes do not share
    (docs/decisions/0007-huge-pages.md). The environment variable FPTQ_HUGE_PAGES, 0 or 1, is what
    the library looks at when a session is made; 1 is set where it is not there.
    """
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


def _has_entry(session_options: onnxruntime.SessionOptions, key: str) -> bool:
    try:
        session_options.get_session_config_entry(key)
    except RuntimeError:  # how onnxruntime says that there is no such entry
        return False
    return True
