"""decoder.txt: how a model is fed, in lines that a program reads without a JSON parser.

graph model.onnx                    the model, relative to decoder.txt
portable portable.onnx              the same for any ONNX Runtime; may be absent
library ../lib/libfptq_ort_ops.so   the ops of graph; may be absent
input_ids NAME TYPE                 so attention_mask, position_ids, cache_position and logits
cache PAST PRESENT TYPE AXIS SIZE.. the axis of the tokens; sizes of an empty cache
shared_cache                        past and present may be one buffer
context_length N
vocabulary N                        ids are below it
end ID..                            tokens that end a text
beyond ID TOKEN                     a token of the tokenizer that the model has not, for messages
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fptq_onnx.decoder_io import DecoderIO
from fptq_onnx.errors import FptqError

DECODER_FILE = "decoder.txt"
_LOGITS = ("float32", "float16")


def decoder_text(
    io: DecoderIO,
    *,
    graph: str,
    portable: str | None,
    library: str | None,
    shared_cache: bool,
    context_length: int | None,
    vocabulary: int | None,
    end: Collection[int],
    beyond: Mapping[int, str] | None = None,
) -> str:
    """The lines.

    Args:
        io: the model's inputs and outputs.
        graph: file name of the model.
        portable: file name of its portable form, None without one.
        library: path of the library, None where the graph needs none.
        shared_cache: past and present may be one buffer.
        context_length: tokens at most, None where nothing says.
        vocabulary: ids the model knows, None where nothing says.
        end: ids that end a text.
        beyond: texts of the tokenizer's ids that the model has not.

    Raises:
        FptqError: the model cannot be fed by such a description.
    """
    if io.fixed_sequence is not None or io.fixed_batch not in (None, 1):
        raise FptqError(
            "the model takes a fixed number of tokens or sequences only, which the runner cannot "
            "feed: export it with dynamic axes"
        )
    if io.logits.dtype not in _LOGITS:
        raise FptqError(f"the runner cannot read logits of type {io.logits.dtype}")
    rows: list[tuple[object, ...]] = [("graph", graph)]
    if portable is not None:
        rows.append(("portable", portable))
    if library is not None:
        rows.append(("library", library))
    for role in ("input_ids", "attention_mask", "position_ids", "cache_position", "logits"):
        spec = getattr(io, role)
        if spec is not None:
            rows.append((role, spec.name, spec.dtype))
    for tensor in io.cache:
        start = ("cache", tensor.past, tensor.present, tensor.dtype, tensor.sequence_axis)
        rows.append((*start, *tensor.shape))
    if shared_cache:
        rows.append(("shared_cache",))
    if context_length is not None:
        rows.append(("context_length", context_length))
    if vocabulary is not None:
        rows.append(("vocabulary", vocabulary))
    if end:
        rows.append(("end", *sorted(end)))
    rows += [("beyond", token, _one_word(text)) for token, text in sorted((beyond or {}).items())]
    for row in rows:
        for word in map(str, row):
            if not word or any(character.isspace() for character in word):
                raise FptqError(f"the runner cannot feed a tensor of the name {word!r}: rename it")
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def _one_word(text: str) -> str:
    """A token's text with its blanks written as in a string of C."""
    return "".join(f"\\u{ord(one):04x}" if one.isspace() else one for one in text) or "\\u0000"
