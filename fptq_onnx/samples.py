"""Which samples a conversion calibrates and verifies on, and how statistics are got from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.data import RANDOM, Source, TokenWindows, open_source
from fptq_onnx.calibration.stats import ActivationStats
from fptq_onnx.errors import FptqError
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.progress import track
from fptq_onnx.tensor_spec import graph_inputs


@dataclass
class Samples:
    """Calibration samples as a user names them.

    source: "random" (tokens drawn from the vocabulary; FPTQ's table 6 found them as good as text),
        a .txt, .jsonl or .npz file, a folder of .npz files, an iterable of dicts of arrays by input
        name, or an onnxruntime CalibrationDataReader.
    max_samples: samples at most.
    max_seq_len: tokens in a sample at most.
    seed: of the random tokens, and of the choice of windows from a text.
    text_field: field of a .jsonl object that holds the text.
    tokenizer: tokenizer.json, or a folder with it, for a model whose own folder has none.
    """

    source: str | Path | Iterable[dict[str, Any]] | Any = RANDOM
    max_samples: int = 48
    max_seq_len: int = 256
    seed: int = 0
    text_field: str = "text"
    tokenizer: Path | None = None
    _opened: Source | None = None

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
        }

    def open(self, loaded: LoadedModel) -> Source:
        """The samples for this model; opened once.

        Raises:
            FptqError: see open_source.
        """
        if self._opened is None:
            self._opened = open_source(
                self.source,
                model_folder=loaded.folder,
                inputs=graph_inputs(loaded.model.graph),
                vocab_size=_vocab_size(loaded),
                max_samples=self.max_samples,
                max_seq_len=self.max_seq_len,
                seed=self.seed,
                text_field=self.text_field,
                tokenizer_folder=self.tokenizer_folder,
            )
        return self._opened

    def statistics(
        self,
        loaded: LoadedModel,
        known: ActivationStats | Sequence[Path],
        *,
        threads: int,
        quiet: bool,
        say: Callable[[str], None],
    ) -> ActivationStats:
        """Statistics as given, read from files, or measured now.

        Args:
            loaded: the model.
            known: statistics; or paths, several of which are merged, while a single one that does
                not exist yet is measured for and written.
            threads: intra-op threads of the calibration run.
            quiet: show no progress.
            say: receives a line for people.

        Raises:
            FptqError: a file is missing or damaged, or calibration fails.
        """
        if isinstance(known, ActivationStats):
            return known
        paths = [Path(path) for path in known]
        if paths and (len(paths) > 1 or paths[0].exists()):
            merged = functools.reduce(
                ActivationStats.merged, (ActivationStats.load(path) for path in paths)
            )
            names = ", ".join(str(path) for path in paths)
            say(f"calibration  not run: statistics of {merged.samples} samples from {names}")
            return merged
        source = self.open(loaded)
        started = time.monotonic()
        stats = collect(
            loaded,
            source,
            description=str(self.describe()["source"]),
            threads=threads,
            track=lambda items, total: track(items, total=total, what="calibrating", quiet=quiet),
        )
        tokens = f" of up to {self.max_seq_len} tokens" if isinstance(source, TokenWindows) else ""
        say(
            f"calibration  {stats.samples} samples{tokens} from {stats.source} "
            f"({time.monotonic() - started:.1f} s)"
        )
        if paths:
            stats.save(paths[0])
        return stats


def folder_of_tokenizer(path: Path) -> Path:
    """The folder meant by --tokenizer, which may name the file in it."""
    return path.parent if path.is_file() else path


def _vocab_size(loaded: LoadedModel) -> int | None:
    """Rows of the embedding table: the initializer that a Gather looks token ids up in."""
    ids = {value.name for value in loaded.model.graph.inputs if value.name == "input_ids"}
    for node in loaded.model.graph:
        if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name in ids:
            table = node.inputs[0]
            if table is not None and table.shape is not None and isinstance(table.shape[0], int):
                return table.shape[0]
    return None
