"""Calibrate on samples of your own: an ONNX Runtime CalibrationDataReader.

    python examples/calibration_reader.py [OUTPUT_FOLDER]

`Samples` takes a reader made for onnxruntime.quantization, and any iterable of such dicts. A sample
is a dict with an array for each input of the model: for a decoder the token ids, the attention mask
and a KV cache, which is empty here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader  # noqa: TID251  # the interface alone
from tokenizers import Tokenizer

import fptq_onnx

MODEL = Path(__file__).resolve().parent.parent / "models" / "tinystories-7m"
LENGTH = 128
# Of the embedded model: BOS stands before each text; genai_config.json has these numbers.
BOS, LAYERS, KV_HEADS, HEAD_SIZE = 1, 6, 4, 32


class StoryReader(CalibrationDataReader):
    """Token windows of a text file, in which a line `<|endoftext|>` ends each document."""

    def __init__(self, text: Path, tokenizer: Path) -> None:
        """Cut each document into windows of LENGTH tokens; a shorter rest is left out."""
        split = Tokenizer.from_file(str(tokenizer))
        self._windows: list[np.ndarray] = []
        for document in text.read_text(encoding="utf-8").split("<|endoftext|>"):
            ids = [BOS, *split.encode(document.strip(), add_special_tokens=False).ids]
            for start in range(0, len(ids) - LENGTH + 1, LENGTH):
                self._windows.append(np.array([ids[start : start + LENGTH]], np.int64))
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, token ids int64 [1, LENGTH]; None after the last one."""
        if self._next == len(self._windows):
            return None
        ids = self._windows[self._next]
        self._next += 1
        sample = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for layer in range(LAYERS):
            for part in ("key", "value"):  # [batch, heads, tokens, head size], 0 tokens
                name = f"past_key_values.{layer}.{part}"
                sample[name] = np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32)
        return sample


def main(output: Path) -> None:
    """Convert the embedded model on 16 windows of its held-out text."""
    reader = StoryReader(MODEL / "heldout.txt", MODEL / "tokenizer.json")
    samples = fptq_onnx.Samples(reader, max_samples=16)
    result = fptq_onnx.convert(MODEL, output, samples=samples, say=print)
    print(f"{result.stats.samples} samples, {len(result.plan.linears)} linears")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "model-w4a8")
