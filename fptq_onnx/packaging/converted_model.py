"""What `fptq-onnx convert` wrote: one target's folder, or a folder that holds several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError, NoDecoderError
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.hf_config import read_config
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.model_io.model_folder import hub_repository, hub_snapshot, model_name
from fptq_onnx.model_io.model_proto import read_proto
from fptq_onnx.model_io.output_folder import REPORT_FILE
from fptq_onnx.model_io.save import MODEL_FILE
from fptq_onnx.runtime.decoder_io import DecoderIO, decoder_io_of
from fptq_onnx.runtime.proto_graph import ProtoGraph
from fptq_onnx.scheme.config import TARGETS

_CUSTOM, _PORTABLE = "custom", "matmulnbits"


@dataclass(frozen=True)
class ConvertedModel:
    """A converted model, opened.

    path: as the user gave it.
    main: the model to be packaged.
    portable: the same model of target matmulnbits, where convert wrote it too.
    report: of the main model, from report.json.
    """

    path: Path
    main: LoadedModel
    portable: LoadedModel | None
    report: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder, in characters that file names and servers take.

        A folder named after its target is one of several: the one above has the model's name.
        """
        path = self.path.absolute() if hub_repository(self.path) else self.path.resolve()
        given = model_name(path.parent if path.name in TARGETS else path)
        return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in given)

    @property
    def needs_library(self) -> bool:
        """Whether the main model has ops of ours."""
        return FPTQ_DOMAIN in self.main.model.opset_imports

    def graph(self) -> ProtoGraph:
        """The graph of the main model, as it is in its file."""
        return ProtoGraph(read_proto(self.main.file).graph)

    def decoder_io(self) -> DecoderIO:
        """How the main model is fed.

        Raises:
            FptqError: not a causal language model.
        """
        try:
            return decoder_io_of(self.main)
        except NoDecoderError as error:
            raise error.advised("this package is for models that generate text") from error


def open_converted(path: Path) -> ConvertedModel:
    """Open a folder that convert wrote; weights stay in their files.

    Args:
        path: a target's folder; or the one above, of a conversion to several targets, of which
            custom is packaged where it is there, with matmulnbits as its portable form.

    Raises:
        FptqError: not such a folder, or a damaged one.
    """
    if path.is_dir():
        path = hub_snapshot(path)
    else:
        raise FptqError(f"no folder {path}: give one that `fptq-onnx convert` wrote")
    if (path / REPORT_FILE).is_file():
        return ConvertedModel(path, _load(path), None, read_config(path, REPORT_FILE))
    targets = sorted(file.parent.name for file in path.glob(f"*/{REPORT_FILE}"))
    if _CUSTOM not in targets and _PORTABLE not in targets:
        raise FptqError(
            f"{path} holds conversions to {', '.join(targets)}: give one of these folders"
            if targets
            else f"{path} was not written by `fptq-onnx convert` (no {REPORT_FILE}): convert first"
        )
    main = path / (_CUSTOM if _CUSTOM in targets else _PORTABLE)
    portable = _load(path / _PORTABLE) if {_CUSTOM, _PORTABLE} <= set(targets) else None
    return ConvertedModel(path, _load(main), portable, read_config(main, REPORT_FILE))


def _load(folder: Path) -> LoadedModel:
    return load_model(folder / MODEL_FILE, allow_quantized=True)
