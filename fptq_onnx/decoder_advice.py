"""What to do about a model that is no decoder: that depends on what was wanted of it."""

from __future__ import annotations

import re

from fptq_onnx.errors import FptqError

# What decoder_io.py and kv_cache.py advise for conversion, which can do without a decoder.
_FOR_CONVERSION = re.compile(r"(;|, or) give calibration samples as \.npz files$")
FOR_TEXT = (
    "only an export with token ids as input and logits as output can be run, served or measured"
)


def advised(error: FptqError, advice: str) -> FptqError:
    """The same error with advice for something other than conversion.

    Args:
        error: of `find_io` or `DecoderIO.from_specs`.
        advice: takes the place of what is advised for conversion; nothing else is changed.
    """
    return FptqError(_FOR_CONVERSION.sub(f"; {advice}", str(error)))
