"""Reload what was written, run it against the original, and say how far apart they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from fptq_onnx.calibration.data import GENERATED, RANDOM, TokenWindows
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.perplexity import Comparison, compare, compare_outputs
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_io.finite_json import finite
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.model_io.save import MODEL_FILE
from fptq_onnx.model_io.tensor_spec import session_inputs
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import decoder_io_of
from fptq_onnx.runtime.session import open_session, open_session_in_memory

_KINDS = {RANDOM: "samples of random tokens", GENERATED: "samples the model wrote"}


@dataclass(frozen=True)
class Verification:
    """How the written model compares with the original.

    comparison: for language models.
    outputs: for all others, the difference of each output.
    samples: samples compared on.
    held_out: whether they were kept out of calibration.
    divided: outputs not compared, since they hold values that a fold divided.
    kind: "random" tokens, of which perplexity says nothing, "generated" by the model, or "".
    """

    comparison: Comparison | None
    outputs: tuple[dict[str, Any], ...]
    samples: int
    held_out: bool
    kind: str = ""
    divided: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """One line for people."""
        kind = _KINDS.get(self.kind, "samples")
        what = f"on {self.samples} {'held-out ' if self.held_out else ''}{kind}"
        if self.comparison is not None:
            c = self.comparison
            if c.last_only:
                what += ", each at its last token alone: the model gives no other logits"
            perplexity = f"perplexity {c.perplexity_reference:.4g} -> {c.perplexity:.4g}, "
            return (
                f"check        {'' if self.kind == RANDOM else perplexity}"
                f"KL {c.kl:.3g} nats (median {c.kl_median:.3g}, worst token {c.kl_max:.3g}), "
                f"top-1 agreement {c.top1:.1%}, largest logit difference "
                f"{c.max_rel_diff:.2g} of the largest logit, {what}"
            )
        if self.divided:
            what += f"; {len(self.divided)} cache outputs hold divided values and are not compared"
        # By what becomes of its tokens, then by the sum over all, which large tokens decide.
        worst = max(
            self.outputs, key=lambda item: (item["token_error_median"], -float(item["sqnr_db"]))
        )
        return (
            f"check        worst output {worst['name']}: SQNR {worst['sqnr_db']:.1f} dB, error of "
            f"a token {worst['token_error_mean']:.2g} of it on average (median "
            f"{worst['token_error_median']:.2g}, worst {worst['token_error_worst']:.2g}), largest "
            f"difference {worst['max_rel_diff']:.2g} of the largest value, {what}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the report; infinities as null, which JSON has no number for."""
        data: dict[str, Any] = {
            "samples": self.samples,
            "held_out": self.held_out,
            "kind": self.kind,
        }
        if self.comparison is not None:
            data.update(self.comparison.to_dict())
        if self.divided:
            data["divided"] = list(self.divided)
        if self.outputs:
            data["outputs"] = list(self.outputs)
        return {key: finite(value) for key, value in data.items()}


def verify(
    loaded: LoadedModel,
    folder: Path,
    samples: Samples,
    count: int,
    *,
    threads: int,
    quiet: bool = True,
    divided: Collection[str] = (),
) -> Verification:
    """Check a written model, and run it beside the original.

    Args:
        loaded: the original, its graph unchanged but for names.
        folder: holds the written model.
        samples: what calibration used; its held-out part where it has one.
        count: samples to compare on.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress where the samples have yet to be written.
        divided: outputs that differ by what was folded, see `scaled_outputs`.

    Raises:
        FptqError: the written model cannot be loaded or run, or gives NaN.
    """
    written = folder / MODEL_FILE
    load_model(written, allow_quantized=True)  # checks that all data is there
    _check(written, loaded.file)
    forget_pages(loaded.model.graph.initializers.values())  # sessions map the files for themselves
    reference = open_session_in_memory(loaded.model, loaded.data_folder, threads=threads)
    candidate = open_session(written, threads=threads or None)
    source = samples.open(loaded, threads=threads, quiet=quiet)
    if isinstance(source, TokenWindows):
        io = decoder_io_of(loaded)
        windows = source.verification[:count]
        own = io.with_cache_types(session_inputs(candidate))
        comparison = compare(Decoder(reference, io), Decoder(candidate, own), windows)
        return Verification(comparison, (), len(windows), bool(source.heldout), kind=samples.kind)
    feeds = source.verification[:count]
    names = [output.name for output in reference.get_outputs()]
    comparable = [name for name in names if name not in divided]
    differences = compare_outputs(reference, candidate, feeds, comparable)
    outputs = tuple({key: value for key, value in asdict(item).items() if key != "elements"}
                    for item in differences)  # fmt: skip
    left_out = tuple(name for name in names if name in divided) if comparable else ()
    return Verification(None, outputs, len(feeds), held_out=False, divided=left_out)


def _check(written: Path, original: Path) -> None:
    """Run onnx.checker; ops it does not know are accepted where the original has them too."""
    try:
        onnx.checker.check_model(str(written))
    except onnx.checker.ValidationError as error:
        try:
            onnx.checker.check_model(str(original))
        except onnx.checker.ValidationError:
            return  # ONNX Runtime's own exporter puts its ops into the standard domain
        text = str(error).strip().splitlines()[0]
        raise FptqError(f"the converted model fails onnx.checker ({text}): report this") from error
