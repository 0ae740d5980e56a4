"""Which samples a conversion calibrates and verifies on, and how statistics are got from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.calibration.bidirectional import is_bidirectional
from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.data import GENERATED, RANDOM, Source, TokenWindows, open_source
from fptq_onnx.calibration.encoder_feeds import encoder_feeds
from fptq_onnx.calibration.generated import without_loops, write_windows
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import constant_of
from fptq_onnx.model_io.load import LoadedModel, fingerprint
from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer
from fptq_onnx.progress import track, tracker
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import INPUT_IDS_NAMES, decoder_io_of, find_logits
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.text.tokenizer import prefix_of

# Far fewer than the channels of any layer, GPTQ's Hessian are of low rank.
_FEW_TOKENS = 512


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
    _opened: Source | None = None
    _kind: str = ""
    _loops: int = 0
    _unwritten: bool = False

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
            "random_for_loops": self._loops,
        }

    @property
    def kind(self) -> str:
        """What `open` found: "generated", "random", or "" for samples that were given."""
        return self._kind

    def open(self, loaded: LoadedModel, *, threads: int = 0, quiet: bool = True) -> Source:
        """The samples for this model; opened, and written where need be, once.

        Args:
            loaded: the model.
            threads: intra-op threads, 0 lets ONNX Runtime choose.
            quiet: show no progress.

        Raises:
            FptqError: see open_source and write_windows.
        """
        source = self.drawn(loaded, threads=threads)
        if self._unwritten and isinstance(source, TokenWindows):
            self._unwritten = False
            self._write(loaded, source, threads, quiet)
        assert self._opened is not None
        return self._opened

    def drawn(self, loaded: LoadedModel, *, threads: int = 0) -> Source:
        """The same, but random tokens where the model has not written its samples yet.

        They do where any tokens do, as to see that two graphs compute the same.

        Args:
            loaded: the model.
            threads: intra-op threads, 0 lets ONNX Runtime choose.

        Raises:
            FptqError: see open_source.
        """
        if self._opened is None:
            self._opened = open_source(
                self.source,
                model_folder=loaded.folder,
                inputs=loaded.inputs,
                vocab_size=_vocab_size(loaded),
                max_samples=self.max_samples,
                max_seq_len=self.max_seq_len,
                seed=self.seed,
                text_field=self.text_field,
                tokenizer_folder=self.tokenizer_folder,
            )
            if isinstance(self._opened, TokenWindows):
                self._kind = RANDOM if self.source in (RANDOM, GENERATED) else ""
                outputs = loaded.outputs
                feeds = encoder_feeds(
                    self._opened,
                    loaded.inputs,
                    outputs,
                    lambda sample: is_bidirectional(
                        loaded, find_logits(outputs).name, sample, threads=threads
                    ),
                )
                if feeds is not None:
                    self._opened = feeds
                self._unwritten = feeds is None and self.source == GENERATED
        return self._opened

    def _write(self, loaded: LoadedModel, drawn: TokenWindows, threads: int, quiet: bool) -> None:
        """Replace random tokens by what the model writes after the first ones, if it can."""
        io = decoder_io_of(loaded)
        if not io.has_cache or io.fixed_sequence is not None:
            return
        session = open_session_in_memory(loaded.model, loaded.data_folder, threads=threads)
        special = loaded.special_ids_with(self.tokenizer_folder)
        texts = self.tokenizer_folder or loaded.folder
        try:
            written = write_windows(
                Decoder(session, io),
                [*drawn.windows, *drawn.heldout],
                np.random.default_rng(self.seed),
                prefix=prefix_of(texts, special, _vocab_size(loaded) or special.vocab_size),
                eos=special.eos,
                known=special.vocab_size,
                track=tracker("writing samples", quiet),
            )
        except FptqError:
            return  # what stops the model here stops calibration too, and that can say where
        written, self._loops = without_loops(written, [*drawn.windows, *drawn.heldout])
        cut = len(drawn.windows)
        self._opened = replace(drawn, windows=written[:cut], heldout=written[cut:])
        self._kind = GENERATED

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
            FptqError: a file is missing, damaged or of another model, or calibration fails.
        """
        if isinstance(known, ActivationStats):
            return known
        paths = [Path(path) for path in known]
        if paths and (len(paths) > 1 or paths[0].exists()):
            merged = functools.reduce(
                ActivationStats.merged, (ActivationStats.load(path) for path in paths)
            )
            names = ", ".join(str(path) for path in paths)
            if merged.model not in ("", fingerprint(loaded.model)):
                raise FptqError(
                    f"the statistics in {names} are of another model: measure them for this one, "
                    f"with --stats and the name of a new file"
                )
            say(f"calibration  not run: statistics of {merged.samples} samples from {names}")
            if not merged.know_sizes:
                say(
                    "warning      the statistics are of an earlier version and hold no sizes of "
                    "tokens: static scales that a few huge tokens set are not noticed, measure anew"
                )
            return merged
        started = time.monotonic()
        source = self.open(loaded, threads=threads, quiet=quiet)
        stats = collect(
            loaded,
            source,
            description=self.kind or str(self.describe()["source"]),
            threads=threads,
            track=lambda items, total: track(items, total=total, what="calibrating", quiet=quiet),
        )
        tokens = f" of up to {self.max_seq_len} tokens" if isinstance(source, TokenWindows) else ""
        say(
            f"calibration  {stats.samples} samples{tokens} from {stats.source} "
            f"({time.monotonic() - started:.1f} s)"
        )
        if isinstance(source, TokenWindows):
            count = sum(window.size for window in source.windows)
            if count < _FEW_TOKENS:
                say(
                    f"warning      {count} tokens are few to calibrate on: weights fitted to them "
                    f"serve other text badly, give at least {_FEW_TOKENS}"
                )
        if paths:
            stats.save(paths[0])
        return stats


def _vocab_size(loaded: LoadedModel) -> int | None:
    """Rows of the embedding table: the constant that a Gather looks token ids up in."""
    for node in loaded.model.graph:
        if node.op_type != "Gather" or len(node.inputs) < 2:
            continue
        ids = node.inputs[1]
        while ids is not None and (maker := ids.producer()) is not None:
            # Exporters flatten the ids, or cast them, before they look them up.
            ids = maker.inputs[0] if maker.op_type in _KEEPS_IDS else None
        if ids is not None and ids.is_graph_input() and ids.name in INPUT_IDS_NAMES:
            table = constant_of(node.inputs[0])
            if table is not None and len(table.shape) == 2:
                return table.shape[0]
    return None


_KEEPS_IDS = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
