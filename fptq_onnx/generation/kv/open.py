"""Open a model for generation: logits of the last position only, and the best way to hold rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from fptq_onnx.errors import FOR_TEXT, FptqError, NoDecoderError
from fptq_onnx.generation.kv.base import CacheRows
from fptq_onnx.generation.kv.last_logits import keep_last_logits
from fptq_onnx.generation.kv.left_padded import PaddedRows
from fptq_onnx.generation.kv.no_cache import RefedRows
from fptq_onnx.generation.kv.per_sequence import SeparateRows
from fptq_onnx.generation.kv.shared_buffer import SharedRows, can_share
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.model_choice import find_model_file
from fptq_onnx.model_io.model_proto import plain_proto
from fptq_onnx.model_io.tensor_spec import specs_of_protos
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import find_io
from fptq_onnx.runtime.proto_graph import ProtoGraph
from fptq_onnx.runtime.session import first_line, place_data
from fptq_onnx.runtime.thread_count import check_threads

# A graph whose weights are inside its file is copied to be changed. That is worth it while small.
_LARGEST_COPY = 256 << 20
# Cache positions reserved for a model that names no context length.
DEFAULT_LENGTH = 4096


@dataclass(frozen=True)
class GenerationModel:
    """A model in a session, not yet holding any sequence.

    Attributes:
        decoder: its session and roles; its logits may be those of the last position only.
        shares: whether past and present can be one buffer.
        pads: whether sequences of different lengths can be padded on the left.
        last_only: nodes that compute the last position only, see `keep_last_logits`.
    """

    decoder: Decoder
    shares: bool
    pads: bool
    last_only: int

    def rows(self, *, max_rows: int = 1, max_length: int | None = None) -> CacheRows:
        """A new set of rows.

        Args:
            max_rows: sequences at a time.
            max_length: tokens in a sequence at most; DEFAULT_LENGTH if None.
        """
        io = self.decoder.io
        if not io.has_cache:
            return RefedRows(self.decoder, max_rows=max_rows)
        if self.pads:
            return PaddedRows(self.decoder, max_rows=max_rows)
        if not self.shares:
            return SeparateRows(self.decoder, max_rows=max_rows)
        return SharedRows(
            self.decoder.session, io,
            max_rows=min(max_rows, io.fixed_batch or max_rows),
            max_length=max_length or DEFAULT_LENGTH,
        )  # fmt: skip


def open_generation_model(
    path: Path, *, threads: int | None = None, options: ort.SessionOptions | None = None
) -> GenerationModel:
    """Open an exported or converted model; the file is not changed.

    Args:
        path: an .onnx file, or a folder with one.
        threads: intra-op threads, None or 0 for onnxruntime's choice.
        options: session options to begin with, without our library; they are changed by this call.

    Raises:
        FptqError: nothing there, not a causal language model, too many threads, or onnxruntime
            refuses it.
    """
    check_threads(threads)
    file = find_model_file(path)
    proto, folder = _as_it_is_run(file)
    try:
        io = find_io(file, specs_of_protos(proto.graph.input), specs_of_protos(proto.graph.output))
    except NoDecoderError as error:
        raise error.advised(FOR_TEXT) from error
    shares = can_share(ProtoGraph(proto.graph), io)
    grouped = any(node.op_type == "GroupQueryAttention" for node in proto.graph.node)
    pads = not grouped and io.attention_mask is not None and io.position_ids is not None
    options = options or ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception, too
    options.intra_op_num_threads = threads or 0
    if any(entry.domain == FPTQ_DOMAIN for entry in proto.opset_import):
        # Only then: the library may not be there.
        from fptq_onnx.runtime.native_library import prefer_huge_pages, register

        prefer_huge_pages()
        register(options)
    cut = 0
    if file.stat().st_size <= _LARGEST_COPY:
        cut = keep_last_logits(proto.graph, io.logits.name)
    try:
        if cut or folder is not None:
            place_data(options, folder or file.parent)
            source: str | bytes = proto.SerializeToString()
        else:
            source = str(file)
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
        raise FptqError(f"ONNX Runtime cannot run {file}: {first_line(error)}") from error
    return GenerationModel(Decoder(session, io), shares, pads, cut)


def _as_it_is_run(file: Path) -> tuple[onnx.ModelProto, Path | None]:
    """The model, and what its data are relative to where that is not its own folder."""
    proto = plain_proto(file)
    if proto is not None:
        return proto, None
    import onnx_ir as ir  # it takes longer to import than most models take to open

    from fptq_onnx.model_io.load import load_model

    loaded = load_model(file, allow_quantized=True)
    return ir.to_proto(loaded.model), loaded.data_base
