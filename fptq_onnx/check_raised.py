"""Compare a model raised from an old opset with its file, as ONNX Runtime runs both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fptq_onnx.calibration.data import Source
from fptq_onnx.check_clean_up import is_rounding, relative_difference, run_samples
from fptq_onnx.errors import FptqError
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.passes.raise_old_opset import WANTED


def check_raised(
    loaded: LoadedModel,
    open_source: Callable[[], Source],
    say: Callable[[str], None],
    *,
    threads: int = 0,
) -> tuple[str, ...]:
    """Run the model of the file and the raised one on the same samples, one after the other.

    Args:
        loaded: as loaded or normalized.
        open_source: gives the samples; not called for a model that was not raised.
        say: receives that sentence as a line for people.
        threads: intra-op threads, 0 lets ONNX Runtime choose.

    Returns:
        One sentence for the report; none for a model that was not raised.

    Raises:
        FptqError: the outputs differ by more than rounding, or one of the two does not run.
    """
    if loaded.raised_from is None:
        return ()
    sentence = _compared(loaded, open_source, threads)
    say(f"note         {sentence}")
    return (sentence,)


def _compared(loaded: LoadedModel, open_source: Callable[[], Source], threads: int) -> str:
    what = f"raised from opset {loaded.raised_from} to {WANTED}"
    try:
        source = open_source()
    except FptqError as error:
        return f"{what} (not checked: {error})"
    before = list(run_samples(loaded, ir.load(loaded.file), source, threads))
    difference = 0.0
    for found, expected in zip(
        run_samples(loaded, loaded.model, source, threads), before, strict=True
    ):
        for name, array in expected.items():
            if array.dtype.kind in "biufc":
                other = relative_difference(array, found[name])
            else:  # text, or a type of few bits
                other = 0.0 if np.array_equal(array, found[name]) else np.inf
            difference = max(difference, other)
    if not is_rounding(loaded, difference):
        raise FptqError(
            f"{loaded.file} was {what}, but its outputs then differ by {difference:.2g} of the "
            f"largest: export it again with opset {WANTED} or newer"
        )
    return f"{what} (checked: largest difference {difference:.1e} of the largest output)"
