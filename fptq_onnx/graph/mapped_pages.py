"""Give back the memory of weights that were read from a mapped file."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import onnx_ir as ir

_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)  # Linux and macOS


def forget_pages(values: Iterable[ir.Value | None]) -> None:
    """Take the pages of external weights out of this process's resident memory.

    Every tensor maps the whole file for itself, and a page stays resident in each mapping that read
    it: a run through a model would count it twice over. The mapping stays, and arrays that view it
    stay good: what is read again comes from the system's file cache.
    """
    if _DONT_NEED is None:
        return
    for value in values:
        tensor = None if value is None else value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
            tensor.raw.madvise(_DONT_NEED)
