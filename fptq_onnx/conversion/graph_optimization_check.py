"""Decide which rewrites of the clean-up a model gets: those after which it gives the same outputs.

A decoder is run on two rows, one of them padded on the left, then on further tokens with the cache
that left; other models on samples. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.calibration.data import Source, TokenWindows
from fptq_onnx.calibration.whole_feeds import rotates_one_row
from fptq_onnx.conversion.graph_optimization import ALL, GraphOptimization, optimize_graph
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.output_difference import max_abs_diff, max_finite, ratio
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.passes import Declined, PassError
from fptq_onnx.runtime.decoder import array_of, empty_cache, token_feeds
from fptq_onnx.runtime.decoder_io import DecoderIO, decoder_io_of
from fptq_onnx.runtime.session import first_line, open_session_in_memory

# Of the largest element of an output. Sums in another order differ by some 1e-6 in float32; what a
# wrong rewrite does is of the order of 1.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 1e-2
_TOKENS = 12  # in the first run of a decoder
_PADDED = 4  # of them padding, in its last row
_STEPS = (1, 3)  # tokens fed with the cache after them
_ROWS = 2

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class CheckedOptimization:
    """What the check found.

    names: the rewrites to make, after which the outputs are the same.
    done: what they do to the model.
    difference: the largest of any output, relative to its largest element.
    undone: one sentence for each rewrite that is not made though it found something.
    """

    names: tuple[str, ...]
    done: GraphOptimization
    difference: float
    undone: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """For people; none where there was nothing to do."""
        if not self.done.counts:
            return []
        return [
            f"clean-up     {self.done.text}",
            f"             outputs differ by {self.difference:.1e} of the largest, with a cache "
            "and padded rows where the model has them",
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, one sentence each."""
        return (*_first_of_each(self.done.declined), *self.undone)


def check_graph_optimization(
    loaded: LoadedModel, open_source: Callable[[], Source], *, threads: int = 0
) -> CheckedOptimization:
    """Try the rewrites on copies of a model.

    Args:
        loaded: the model as exported and normalized; not changed.
        open_source: gives samples to run it on; not called where there is nothing to do.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
    """
    model, done = _optimized(loaded, ALL)
    if isinstance(done, GraphOptimization) and not done.counts:
        return CheckedOptimization((), done, 0.0, ())
    source = open_source()
    try:
        before = list(run_samples(loaded, loaded.model, source, threads))
    except FptqError as error:
        left = f"the clean-up was left out, since nothing can be compared: {error}"
        return CheckedOptimization((), GraphOptimization({}, ()), 0.0, (left,))
    if isinstance(done, GraphOptimization):
        difference = _difference(loaded, model, source, threads, before)
        if is_rounding(loaded, difference):
            return CheckedOptimization(ALL, done, difference, ())
    kept: tuple[str, ...] = ()
    undone: list[str] = []
    difference = 0.0
    for name in ALL:
        model, done = _optimized(loaded, (*kept, name))
        if isinstance(done, PassError):
            undone.append(f"the clean-up {name} was undone: {done}")
            continue
        if name not in done.counts:
            continue
        found = _difference(loaded, model, source, threads, before)
        if is_rounding(loaded, found):
            kept, difference = (*kept, name), found
        else:
            undone.append(
                f"the clean-up {name} was undone: outputs differ by {found:.2g} of the largest"
            )
    return CheckedOptimization(
        kept, optimize_graph(loaded.model.clone(), kept), difference, tuple(undone)
    )


def _optimized(
    loaded: LoadedModel, names: tuple[str, ...]
) -> tuple[ir.Model, GraphOptimization | PassError]:
    """A rewritten copy, and what was done, or which pass failed or broke the graph."""
    model = loaded.model.clone()
    try:
        return model, optimize_graph(model, names)
    except PassError as error:
        return model, error


def is_rounding(loaded: LoadedModel, difference: float) -> bool:
    """Whether outputs that differ so much are the same up to the order of sums."""
    halves = any(value.dtype == ir.DataType.FLOAT16 for value in loaded.model.graph.outputs)
    halves |= any(v.dtype == ir.DataType.FLOAT16 for v in loaded.model.graph.initializers.values())
    return difference <= (_TOLERANCE_HALF if halves else _TOLERANCE)


def _difference(
    loaded: LoadedModel, model: ir.Model, source: Source, threads: int, before: list[Arrays]
) -> float:
    """The largest of any output, relative to its largest element; infinite if it cannot be run."""
    try:
        after = list(run_samples(loaded, model, source, threads))
    except FptqError:
        return np.inf
    return max(
        relative_difference(expected, found[name])
        for outputs, found in zip(before, after, strict=True)
        for name, expected in outputs.items()
    )


def relative_difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest, by a's largest element; infinite where NaNs or shapes are others."""
    if a.shape != b.shape or np.any(np.isnan(a) != np.isnan(b)):
        return np.inf
    a, b = (np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
            for x in (a, b))  # fmt: skip
    return ratio(max_abs_diff(a, b), max_finite(a))


def run_samples(
    loaded: LoadedModel, model: ir.Model, source: Source, threads: int
) -> Iterator[Arrays]:
    """The outputs of each run, by name.

    Raises:
        FptqError: ONNX Runtime cannot run the model.
    """
    session = open_session_in_memory(model, loaded.data_folder, threads=threads)
    names = [output.name for output in session.get_outputs()]
    try:
        if not isinstance(source, TokenWindows):
            for sample in source.verification[:_ROWS]:
                yield dict(zip(names, session.run(names, sample), strict=True))
            return
        io = decoder_io_of(loaded)
        yield from _run_decoder(session, io, source, one_row=rotates_one_row(loaded))
    except FptqError:
        raise
    except Exception as error:  # ONNX Runtime raises its own types and bare RuntimeError
        raise FptqError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error


def _run_decoder(
    session: ort.InferenceSession, io: DecoderIO, source: TokenWindows, *, one_row: bool
) -> Iterator[Arrays]:
    rows = io.fixed_batch or (1 if one_row else _ROWS)
    ids = np.stack([np.resize(source.windows[i % len(source.windows)], _TOKENS + sum(_STEPS))
                    for i in range(rows)])  # fmt: skip
    if io.fixed_sequence is not None:
        ids = np.resize(ids, (rows, io.fixed_sequence))
    first = io.fixed_sequence or _TOKENS
    lengths = [first, *(_STEPS if io.has_cache and io.fixed_sequence is None else ())]
    mask = np.ones_like(ids)
    if rows > 1 and io.attention_mask is not None:
        mask[-1, :_PADDED] = 0
    places = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
    names = [output.name for output in session.get_outputs()]
    cache = {tensor.past: empty_cache(tensor, rows) for tensor in io.cache}
    end = 0
    for length in lengths:
        start, end = end, end + length
        feed = {**token_feeds(io, ids[:, start:end], start, end), **cache}
        if io.attention_mask is not None:
            spec = io.attention_mask
            feed[spec.name] = _value(mask[:, :end].astype(spec.dtype))
        if io.position_ids is not None:
            spec = io.position_ids
            feed[spec.name] = _value(places[:, start:end].astype(spec.dtype))
        results = dict(zip(names, session.run_with_ort_values(names, feed), strict=True))
        yield {name: array_of(value) for name, value in results.items()}
        cache = {tensor.past: results[tensor.present] for tensor in io.cache}


def _value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _first_of_each(declined: tuple[Declined, ...]) -> tuple[str, ...]:
    """The first sentence of each kind (how its reason begins), and how many there are."""
    kinds: dict[str, list[Declined]] = {}
    for each in declined:
        kinds.setdefault(each.reason.split(": ")[0], []).append(each)
    return tuple(
        str(some[0]) + (f" (and {len(some) - 1} more)" if len(some) > 1 else "")
        for some in kinds.values()
    )
