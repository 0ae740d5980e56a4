"""Open the samples that a user names: read, drawn at random, or written by the model itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fptq_onnx.calibration.bidirectional import is_bidirectional
from fptq_onnx.calibration.data import GENERATED, RANDOM, Source, TokenWindows, open_source
from fptq_onnx.calibration.encoder_feeds import encoder_feeds
from fptq_onnx.calibration.generated import without_loops, write_windows
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import constant_of
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import INPUT_IDS_NAMES, decoder_io_of, find_logits
from fptq_onnx.runtime.run_context import RunContext
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.text.tokenizer import prefix_of

if TYPE_CHECKING:
    from fptq_onnx.calibration.samples import Samples


@dataclass(frozen=True)
class OpenedSamples:
    """Samples that a model can be run on.

    source: the samples.
    kind: "generated", "random", or "" for samples that were given.
    unwritten: whether the model has yet to write what now is random.
    loops: samples that stay random, since the model only repeats itself in them.
    """

    source: Source
    kind: str = ""
    unwritten: bool = False
    loops: int = 0


def draw_samples(samples: Samples, loaded: LoadedModel, *, threads: int = 0) -> OpenedSamples:
    """Read samples, or draw random tokens where the model is to write them.

    Args:
        samples: as named.
        loaded: the model.
        threads: intra-op threads, 0 lets ONNX Runtime choose.

    Raises:
        FptqError: see open_source.
    """
    inputs, outputs = loaded.inputs, loaded.outputs
    source = open_source(
        samples.source,
        model_folder=loaded.folder,
        inputs=inputs,
        vocab_size=_vocab_size(loaded),
        max_samples=samples.max_samples,
        max_seq_len=samples.max_seq_len,
        seed=samples.seed,
        text_field=samples.text_field,
        tokenizer_folder=samples.tokenizer_folder,
    )
    if not isinstance(source, TokenWindows):
        return OpenedSamples(source)
    kind = RANDOM if samples.source in (RANDOM, GENERATED) else ""
    feeds = encoder_feeds(
        source,
        inputs,
        outputs,
        lambda sample: is_bidirectional(loaded, find_logits(outputs).name, sample, threads=threads),
    )
    if feeds is not None:
        return OpenedSamples(feeds, kind)
    return OpenedSamples(source, kind, unwritten=samples.source == GENERATED)


def write_samples(
    samples: Samples, drawn: OpenedSamples, loaded: LoadedModel, context: RunContext
) -> OpenedSamples:
    """Replace random tokens by what the model writes after the first ones, if it can.

    Args:
        samples: as named.
        drawn: random tokens.
        loaded: the model.
        context: threads and progress.
    """
    random = replace(drawn, unwritten=False)
    source, io = drawn.source, decoder_io_of(loaded)
    if not isinstance(source, TokenWindows) or not io.has_cache or io.fixed_sequence is not None:
        return random
    session = open_session_in_memory(loaded.model, loaded.data_folder, threads=context.threads)
    special = loaded.special_ids_with(samples.tokenizer_folder)
    texts = samples.tokenizer_folder or loaded.folder
    windows = [*source.windows, *source.heldout]
    try:
        written = write_windows(
            Decoder(session, io),
            windows,
            np.random.default_rng(samples.seed),
            prefix=prefix_of(texts, special, _vocab_size(loaded) or special.vocab_size),
            eos=special.eos,
            known=special.vocab_size,
            track=context.tracker("writing samples"),
        )
    except FptqError:
        return random  # what stops the model here stops calibration too, and that can say where
    written, loops = without_loops(written, windows)
    cut = len(source.windows)
    return OpenedSamples(
        replace(source, windows=written[:cut], heldout=written[cut:]), GENERATED, loops=loops
    )


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
