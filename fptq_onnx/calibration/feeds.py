"""Samples that are complete inputs by name: .npz files, iterables of dicts, calibration readers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.downloaded_file import check_downloaded
from fptq_onnx.model_io.tensor_spec import TensorSpec

_BFLOAT16_IN_FILES = np.dtype("V2")  # what NumPy's files call a type it does not know
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
Sample = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Feeds:
    """Raw inputs of any model.

    Attributes:
        samples: one dict of arrays by input name per run, checked against the model's inputs when
            drawn. At least one. Can be gone through repeatedly.
        verification: samples to compare models on, kept when the first one was looked at.
    """

    samples: Iterable[Sample]
    verification: list[Sample] = field(default_factory=list)


def feeds_from_npz(path: Path, inputs: Sequence[TensorSpec], max_samples: int) -> Feeds:
    """Samples from one .npz file, or from a folder of them in order of name, one sample a file.

    Args:
        path: file or folder.
        inputs: what the model must be fed.
        max_samples: files read at most.

    Raises:
        FptqError: no .npz file, one that cannot be read, or arrays that do not fit the inputs.
    """
    files = sorted(path.glob("*.npz"))[:max_samples] if path.is_dir() else [path]
    if not files:
        raise FptqError(f"the folder {path} holds no .npz file")
    return Feeds(_NpzSamples(files, inputs), [_load(files[0], inputs)])


def feeds_from_iterable(source: Any, inputs: Sequence[TensorSpec], max_samples: int) -> Feeds:
    """Samples from Python: an iterable of dicts, or an object with `get_next() -> dict | None`.

    Args:
        source: the iterable, or an onnxruntime CalibrationDataReader as it is.
        inputs: what the model must be fed.
        max_samples: samples drawn at most.

    Raises:
        FptqError: not such an object, nothing in it, or arrays that do not fit the inputs (for
            samples after the first, when they are drawn).
    """
    if callable(getattr(source, "get_next", None)):
        samples: Iterable[Any] = iter(source.get_next, None)
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        samples = source
    else:
        raise FptqError(
            f"calibration data cannot be a {type(source).__name__}; give a path, an iterable of "
            "dicts of arrays by input name, or a CalibrationDataReader"
        )
    checked = _CheckedSamples(samples, inputs, max_samples)
    first = next(iter(checked), None)
    if first is None:
        raise FptqError("the calibration data are empty: not one sample came out of them")
    return Feeds(checked, [first])


def check_sample(sample: Any, inputs: Sequence[TensorSpec], where: str) -> Sample:
    """Check one sample against the model's inputs.

    Args:
        sample: a mapping from input name to array.
        inputs: what the model must be fed.
        where: what the sample is, for messages.

    Returns:
        The arrays, by name; bfloat16 as float32, and integers of another width, where the model
        wants that, which changes no value.

    Raises:
        FptqError: a name too many or too few, or the wrong dtype, rank or fixed dimension.
    """
    if not isinstance(sample, Mapping):
        raise FptqError(f"{where} is a {type(sample).__name__}, not a dict of arrays by input name")
    arrays = {str(name): np.asarray(value) for name, value in sample.items()}
    for spec in inputs:
        if spec.name not in arrays:
            raise FptqError(
                f"{where} lacks the input {spec.describe()}; it holds "
                + (", ".join(sorted(arrays)) or "nothing")
            )
        if spec.dtype == "float32":
            arrays[spec.name] = _widened(arrays[spec.name])
        arrays[spec.name] = _as_integers(arrays[spec.name], spec)
        _check_array(arrays[spec.name], spec, where)
    expected = {spec.name for spec in inputs}
    for name in arrays:
        if name not in expected:
            raise FptqError(
                f'{where} holds "{name}", which is no input of the model; its inputs are '
                + ", ".join(sorted(expected))
            )
    return arrays


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    """Bfloat16 as float32: the user's model may take it, ours takes float32 in its place."""
    if array.dtype == _BFLOAT16_IN_FILES:
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def _as_integers(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Integers of another width as the model takes them, if each value stays what it is.

    NumPy 1 makes int32 of Python's integers on Windows, where others make int64.
    """
    if array.dtype.name == spec.dtype or array.dtype.kind not in "iub" or not array.size:
        return array
    if spec.dtype not in _INTEGERS:
        return array
    wanted = np.iinfo(spec.dtype)
    if int(array.min()) < wanted.min or int(array.max()) > wanted.max:
        return array
    return array.astype(spec.dtype)


def _check_array(array: NDArray[Any], spec: TensorSpec, where: str) -> None:
    got = TensorSpec(spec.name, array.dtype.name, array.shape).describe()
    message = f"{where} holds {got}, but the model wants {spec.describe()}"
    if spec.dtype not in ("", "str") and array.dtype.name != spec.dtype:
        raise FptqError(f"{message}: the dtype differs")
    if spec.shape is None:
        return
    if array.ndim != len(spec.shape):
        raise FptqError(f"{message}: the rank differs")
    for size, wanted in zip(array.shape, spec.shape, strict=True):
        if isinstance(wanted, int) and size != wanted:
            raise FptqError(f"{message}: a dimension must be {wanted}, not {size}")


class _CheckedSamples:
    """Samples from Python; can be gone through repeatedly.

    Statistics and sequential quantization both need them. What may come out only once is kept;
    a list is not copied.
    """

    def __init__(
        self, samples: Iterable[Any], inputs: Sequence[TensorSpec], max_samples: int
    ) -> None:
        self._inputs = inputs
        self._max_samples = max_samples
        self._source = samples
        self._once = None if isinstance(samples, Sequence) else iter(samples)
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Sample]:
        samples = self._source if self._once is None else self._replayed()
        for number, sample in enumerate(islice(samples, self._max_samples), start=1):
            yield check_sample(sample, self._inputs, f"calibration sample {number}")

    def _replayed(self) -> Iterator[Any]:
        assert self._once is not None
        for index in count():
            if index == len(self._kept):
                try:
                    self._kept.append(next(self._once))
                except StopIteration:
                    return
            yield self._kept[index]


class _NpzSamples:
    """The samples of some files, one in memory at a time; can be gone through repeatedly."""

    def __init__(self, files: Sequence[Path], inputs: Sequence[TensorSpec]) -> None:
        self._files = files
        self._inputs = inputs

    def __iter__(self) -> Iterator[Sample]:
        return (_load(file, self._inputs) for file in self._files)

    def __len__(self) -> int:
        return len(self._files)


def _load(path: Path, inputs: Sequence[TensorSpec]) -> Sample:
    check_downloaded(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is one array without a name")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise FptqError(f"cannot read {path} as .npz: {error}") from error
    return check_sample(arrays, inputs, str(path))
