"""Models whose logits depend on the last token alone: metrics can be worked out by hand."""

import onnx
import onnx.parser
import onnxruntime as ort

from fptq_onnx.runtime.decoder import Decoder


def parsed(text: str) -> onnx.ModelProto:
    """A model from ONNX's text form, without its head."""
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]>\n' + text)


def session(text: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(parsed(text).SerializeToString(), options)


def bigram_text(rows: list[list[float]], shape: str = "B, S") -> str:
    numbers = ", ".join(str(x) for row in rows for x in row)
    table = f"{len(rows)}, {len(rows[0])}"
    text = f"m (int64[{shape}] input_ids) => (float[{shape}, {len(rows[0])}] logits)"
    return text + f" <float[{table}] t = {{{numbers}}}> {{ logits = Gather(t, input_ids) }}"


def bigram(rows: list[list[float]], shape: str = "B, S") -> Decoder:
    """Row `id` of a table holds the logits after the token `id`."""
    return Decoder(session(bigram_text(rows, shape)))
