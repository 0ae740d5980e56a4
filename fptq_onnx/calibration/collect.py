"""Run the tapped model over calibration samples and merge what the taps report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.data import Feeds, TokenWindows
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.model_io.load import LoadedModel, fingerprint
from fptq_onnx.numerics.token_sizes import count_sizes
from fptq_onnx.passes.tap_activations import Tap, tap_activations
from fptq_onnx.runtime.decoder import Cache, Decoder
from fptq_onnx.runtime.decoder_io import decoder_io_of
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange

Observed = Mapping[str, NDArray[np.generic]]
Tracker = Callable[[Iterable[Observed], int | None], Iterator[Observed]]


def collect(
    loaded: LoadedModel,
    source: TokenWindows | Feeds,
    *,
    description: str = "",
    threads: int = 0,
    track: Tracker = lambda items, _: iter(items),
) -> ActivationStats:
    """Measure the channel ranges of every linear's input.

    Args:
        loaded: the model; only a clone of its graph is changed.
        source: token windows, run as a prefill and then single-token decode steps with the KV cache
            it left, or raw feeds by input name.
        description: what the samples are, kept with the statistics.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        track: wraps the runs to show progress.

    Returns:
        Ranges of all linear inputs, exactly as one run over all samples would give them.

    Raises:
        FptqError: no sample, NaN or infinity in an activation (naming the linear), or a run fails.
    """
    clone = loaded.model.clone()
    linears = find_linears(clone).linears
    io = decoder_io_of(loaded) if isinstance(source, TokenWindows) else None
    keep = () if io is None else tuple(tensor.present for tensor in io.cache)
    taps = tap_activations(clone, linears, keep)
    session = open_session_in_memory(clone, loaded.data_folder, threads=threads)
    names = [name for tap in taps for name in tap.names]
    runs: Iterable[Observed]
    if isinstance(source, TokenWindows):
        runs = _token_runs(Decoder(session, io), source, names)
        total: int | None = len(source.windows)
    else:
        runs = _feed_runs(session.run, source, names)
        total = None
    ranges: dict[str, ChannelRange] = {}
    samples = 0
    for observed in track(runs, total):
        samples += 1
        for tap in taps:
            channel = _observe(tap, observed, linears, samples)
            known = ranges.get(tap.activation)
            ranges[tap.activation] = channel if known is None else known.merged(channel)
    if not samples:
        raise FptqError("the calibration data held no sample: give at least one")
    return ActivationStats(ranges, samples, description, fingerprint(loaded.model))


def _observe(tap: Tap, observed: Observed, linears: Sequence[Linear], sample: int) -> ChannelRange:
    low, high = observed[tap.low].astype(np.float32), observed[tap.high].astype(np.float32)
    channel = ChannelRange(low, high)
    sizes = np.maximum(-observed[tap.bottom].astype(np.float32), observed[tap.top])
    finite = np.isfinite(low).all() and np.isfinite(high).all()
    if not (np.isfinite(observed[tap.total]).all() and (finite or channel.unseen)):
        linear = next(item for item in linears if item.x.name == tap.activation)
        raise FptqError(
            f"NaN or infinity in the input of {linear.path} ({linear.name}) on sample {sample}: "
            f"check that the model runs well in float on this data"
        )
    return replace(channel, sizes=count_sizes(sizes))


def _token_runs(decoder: Decoder, source: TokenWindows, names: Sequence[str]) -> Iterator[Observed]:
    """One merged observation per window: its prefill and its decode steps."""
    batch = decoder.io.fixed_batch or 1
    for window in source.windows:
        merged: Observed | None = None
        cache: Cache | None = None
        for chunk in _chunks(window, decoder, source.decode_steps):
            ids = np.repeat(chunk[None, :], batch, axis=0)
            step = decoder.forward(ids, cache, names, logits=False)
            cache = step.cache if decoder.io.has_cache else None
            merged = step.outputs if merged is None else _merge(merged, step.outputs)
        if merged is not None:
            yield merged


def _chunks(
    window: NDArray[np.int64], decoder: Decoder, decode_steps: int
) -> list[NDArray[np.int64]]:
    """The pieces of a window to feed in turn; only the first when there is no cache to use."""
    fixed = decoder.io.fixed_sequence
    if fixed is not None:
        pieces = [window[i : i + fixed] for i in range(0, len(window) - fixed + 1, fixed)]
        if not pieces:
            raise FptqError(
                f"the model takes exactly {fixed} tokens at a time, a calibration sample has "
                f"{len(window)}: give longer text or a larger --max-seq-len"
            )
        return pieces if decoder.io.has_cache else pieces[:1]
    steps = min(decode_steps, len(window) - 1) if decoder.io.has_cache else 0
    prefill = len(window) - steps
    return [window[:prefill], *(window[i : i + 1] for i in range(prefill, len(window)))]


def _merge(left: Observed, right: Observed) -> Observed:
    """Two observations as one. The end of a name says of what, as the taps name them."""
    merge: dict[str, Callable[..., NDArray[np.generic]]] = {
        "low": np.minimum, "high": np.maximum, "total": np.add, "bottom": _both, "top": _both,
    }  # fmt: skip
    return {name: merge[name.rsplit("_", 1)[1]](left[name], right[name]) for name in left}


def _both(left: NDArray[np.generic], right: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([left, right])


def _feed_runs(
    run: Callable[[Sequence[str], Mapping[str, NDArray[np.generic]]], Sequence[object]],
    source: Feeds,
    names: Sequence[str],
) -> Iterator[Observed]:
    for number, feed in enumerate(source.samples, start=1):
        try:
            outputs = run(names, feed)
        except Exception as error:  # ORT raises its own types
            text = str(error).strip().splitlines()
            raise FptqError(
                f"the model cannot run on calibration sample {number}: "
                f"{text[0] if text else type(error).__name__}"
            ) from error
        yield {name: np.asarray(array) for name, array in zip(names, outputs, strict=True)}
