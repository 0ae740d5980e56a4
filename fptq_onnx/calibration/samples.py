"""Which samples a conversion calibrates and verifies on: as a user names them, opened once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.calibration.data import GENERATED, Source
from fptq_onnx.calibration.open_samples import OpenedSamples, draw_samples, write_samples
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer
from fptq_onnx.runtime.run_context import DEFAULT, RunContext


@dataclass
class Samples:
    """Calibration samples as a user names them.

    source: "generated" (written by the model itself; random where it has no KV cache to write with,
        or writes in a loop), "random" (tokens drawn from the vocabulary), a .txt, .jsonl or .npz
        file, a folder of .npz files, an iterable of dicts of arrays by input name, or an
        onnxruntime CalibrationDataReader.
    max_samples: samples at most.
    max_seq_len: tokens in a sample at most.
    seed: of the random tokens, and of the choice of windows from a text.
    text_field: field of a .jsonl object that holds the text.
    tokenizer: tokenizer.json, or a folder with it, for a model whose own folder has none.
    """

    source: str | Path | Iterable[dict[str, Any]] | Any = GENERATED
    max_samples: int = 48
    max_seq_len: int = 256
    seed: int = 0
    text_field: str = "text"
    tokenizer: Path | None = None
    _opened: OpenedSamples | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            FptqError: max_samples or max_seq_len is below 1, or the seed is negative.
        """
        if self.max_samples < 1:
            raise FptqError(f"--max-samples must be at least 1, got {self.max_samples}")
        if self.max_seq_len < 1:
            raise FptqError(f"--max-seq-len must be at least 1, got {self.max_seq_len}")
        if self.seed < 0:
            raise FptqError(f"--seed must not be negative, got {self.seed}")

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer given, None when the model's own is to be used."""
        return None if self.tokenizer is None else folder_of_tokenizer(self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """Plain data for the report."""
        named = isinstance(self.source, (str, Path))
        return {
            "source": str(self.source) if named else type(self.source).__name__,
            "max_samples": self.max_samples,
            "max_seq_len": self.max_seq_len,
            "seed": self.seed,
            "random_for_loops": 0 if self._opened is None else self._opened.loops,
        }

    @property
    def kind(self) -> str:
        """What `open` found: "generated", "random", or "" for samples that were given."""
        return "" if self._opened is None else self._opened.kind

    def open(self, loaded: LoadedModel, context: RunContext = DEFAULT) -> Source:
        """The samples for this model; opened, and written where need be, once.

        Args:
            loaded: the model.
            context: threads and progress.

        Raises:
            FptqError: see open_source and write_windows.
        """
        opened = self._drawn(loaded, context.threads)
        if opened.unwritten:
            opened = self._opened = write_samples(self, opened, loaded, context)
        return opened.source

    def drawn(self, loaded: LoadedModel, *, threads: int = 0) -> Source:
        """The same, but random tokens where the model has not written its samples yet.

        They do where any tokens do, as to see that two graphs compute the same.

        Args:
            loaded: the model.
            threads: intra-op threads, 0 lets ONNX Runtime choose.

        Raises:
            FptqError: see open_source.
        """
        return self._drawn(loaded, threads).source

    def _drawn(self, loaded: LoadedModel, threads: int) -> OpenedSamples:
        if self._opened is None:
            self._opened = draw_samples(self, loaded, threads=threads)
        return self._opened
