"""What calibration learns: the range of every channel of every linear's input, and tokens' sizes.

Statistics are minima, maxima and counts, so merging is exact and order does not matter: runs on
different data, or on different machines, combine into the same numbers as one run over everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.token_sizes import BINS

_FORMAT = "fptq-stats-1"


@dataclass(frozen=True)
class ChannelRange:
    """Smallest and largest value seen per channel, float32 [K] each.

    Infinity and -infinity where no token was seen, as the minimum and maximum of nothing.

    sizes: counts of the tokens' sizes, see numerics/token_sizes.py; None where they are not known,
        as in files that earlier versions wrote.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    sizes: NDArray[np.int64] | None = None

    @property
    def absmax(self) -> NDArray[np.float32]:
        """max|x_j| per channel, float32 [K]."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def tensor_absmax(self) -> float:
        """max|x| over the whole activation: the range the plan's thresholds speak of."""
        return float(self.absmax.max())

    @property
    def unseen(self) -> bool:
        """Whether no token was seen at all."""
        return bool(np.isposinf(self.low).all() and np.isneginf(self.high).all())

    def merged(self, other: ChannelRange) -> ChannelRange:
        """The range over both sets of data."""
        known = self.sizes is not None and other.sizes is not None
        return ChannelRange(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.sizes + other.sizes if known else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class ActivationStats:
    """Channel ranges by activation name, and how they were obtained.

    ranges: activation (value) name -> ChannelRange.
    samples: number of samples seen.
    source: what the samples were, for the report.
    model: fingerprint of the model they are of; "" where it is not known.
    """

    ranges: Mapping[str, ChannelRange]
    samples: int = 0
    source: str = ""
    model: str = ""

    @property
    def know_sizes(self) -> bool:
        """Whether the sizes of tokens are known of all activations; earlier versions kept none."""
        return all(channel.sizes is not None for channel in self.ranges.values())

    def merged(self, other: ActivationStats) -> ActivationStats:
        """Statistics over both sets of data; activations of either are kept.

        Raises:
            FptqError: they are of different models.
        """
        if self.model and other.model and self.model != other.model:
            raise FptqError("the statistics are of different models: merge those of one model only")
        ranges = dict(self.ranges)
        for name, channel in other.ranges.items():
            known = ranges.get(name)
            if known is not None and known.low.shape != channel.low.shape:
                raise FptqError(
                    f"the statistics are of different models: {name!r} has {len(known.low)} "
                    f"channels in one and {len(channel.low)} in the other"
                )
            ranges[name] = channel if known is None else known.merged(channel)
        sources = [text for text in (self.source, other.source) if text]
        return ActivationStats(
            ranges,
            self.samples + other.samples,
            " + ".join(dict.fromkeys(sources)),
            self.model or other.model,
        )

    def save(self, path: Path) -> None:
        """Write an .npz that `load` reads back exactly.

        Raises:
            FptqError: the file cannot be written.
        """
        names = list(self.ranges)
        about = {
            "format": _FORMAT,
            "activations": names,
            "samples": self.samples,
            "source": self.source,
            "model": self.model,
            "sizes": [channel.sizes is not None for channel in self.ranges.values()],
        }
        arrays: dict[str, NDArray[np.generic]] = {"about": np.array(json.dumps(about))}
        for index, name in enumerate(names):
            arrays[f"low_{index}"] = self.ranges[name].low
            arrays[f"high_{index}"] = self.ranges[name].high
            sizes = self.ranges[name].sizes
            if sizes is not None:
                arrays[f"sizes_{index}"] = sizes
        partial = path.with_name(path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):  # its folder may not even be one
                partial.unlink()
            raise FptqError(f"cannot write the statistics to {path}: {error.strerror}") from error

    @staticmethod
    def load(path: Path) -> ActivationStats:
        """Read what `save` wrote.

        Raises:
            FptqError: no such file, or it is not a statistics file of this tool.
        """
        if not path.is_file():
            raise FptqError(
                f"no statistics file at {path}: make it first, with --stats {path.name} alone"
            )
        try:
            with np.load(path, allow_pickle=False) as data:
                about = json.loads(str(data["about"]))
                if about["format"] != _FORMAT:
                    raise KeyError(about["format"])
                with_sizes = about.get("sizes", [False] * len(about["activations"]))
                ranges = {
                    name: ChannelRange(
                        data[f"low_{index}"].astype(np.float32),
                        data[f"high_{index}"].astype(np.float32),
                        _sizes(data[f"sizes_{index}"]) if with_sizes[index] else None,
                    )
                    for index, name in enumerate(about["activations"])
                }
                return ActivationStats(
                    ranges, int(about["samples"]), str(about["source"]), str(about.get("model", ""))
                )
        except Exception as error:  # damage makes zipfile, zlib and NumPy raise a dozen types
            raise FptqError(
                f"{path} is not a statistics file of fptq-onnx (or it is damaged): make it again"
            ) from error


def _sizes(counts: NDArray[np.generic]) -> NDArray[np.int64]:
    if counts.shape != (BINS,):
        raise ValueError("the counts of token sizes have another number of bins")
    return counts.astype(np.int64)
