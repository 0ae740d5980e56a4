"""Convert the embedded model from Python, then generate text in a plain ONNX Runtime session.

    python examples/convert_and_run.py [MODEL_FOLDER] [OUTPUT_FOLDER]

MODEL_FOLDER is an export of onnxruntime-genai's model builder, with tokenizer.json and
genai_config.json beside the model. It defaults to models/tinystories-7m, OUTPUT_FOLDER to a
temporary folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import fptq_onnx

MODEL = Path(__file__).resolve().parent.parent / "models" / "tinystories-7m"
PROMPT = "Once upon a time"
NEW_TOKENS = 40


def open_session(folder: Path) -> onnxruntime.InferenceSession:
    """A session over a converted model: the custom-op library is all that is special."""
    options = onnxruntime.SessionOptions()
    fptq_onnx.register(options)
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def facts(folder: Path) -> dict[str, Any]:
    """What genai_config.json says of the model: special tokens, heads, sizes."""
    config: dict[str, Any] = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    return {**config["model"], **config["model"]["decoder"]}


def generate(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding: the prompt in one run, then one token per run."""
    session, about = open_session(folder), facts(folder)
    names = [output.name for output in session.get_outputs()]
    wanted = {tensor.name for tensor in session.get_inputs()}
    # The KV cache before the first token: float32 [batch, heads, tokens, head size], 0 tokens.
    empty = np.zeros((1, about["num_key_value_heads"], 0, about["head_size"]), np.float32)
    cache = {name: empty for name in wanted if name.startswith("past_key_values")}
    ids, written = list(prompt), []
    length = 0
    for _ in range(count):
        length += len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length - len(ids), length, dtype=np.int64)[None],
        }
        feeds = {name: array for name, array in feeds.items() if name in wanted}
        outputs = dict(zip(names, session.run(names, {**feeds, **cache}), strict=True))
        token = int(outputs["logits"][0, -1].argmax())
        # present.0.key of this run is past_key_values.0.key of the next one.
        cache = {past: outputs[past.replace("past_key_values", "present")] for past in cache}
        written.append(token)
        ids = [token]
    return written


def main(model: Path, output: Path) -> None:
    """Convert, print what was decided, generate."""
    result = fptq_onnx.convert(model, output, say=print)
    print(result.plan.counts())

    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    # The model expects the beginning-of-sequence token (BOS), which this tokenizer does not add.
    prompt = [
        facts(output)["bos_token_id"],
        *tokenizer.encode(PROMPT, add_special_tokens=False).ids,
    ]
    tokens = generate(output, prompt, NEW_TOKENS)
    print(PROMPT + tokenizer.decode(tokens))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = [Path(argument) for argument in sys.argv[1:3]]
        main(*given, *[MODEL, Path(scratch) / "model-w4a8"][len(given) :])
