"""Write a LLaMA of random Q4_0 weights as GGUF, for llama.cpp: the shape of make_llama.py's model.

Every matrix is Q4_0, the head and the embeddings too: the fastest choice llama.cpp has. The codes
are random and the scales keep the variance of what a matrix multiplies, so that activations stay
of ordinary size; speed and memory do not depend on more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from make_llama import Shape
from numpy.typing import NDArray

_BLOCK, _BLOCK_BYTES = 32, 18  # of Q4_0: a float16 scale, 16 bytes of codes
_CODES_DEVIATION = (255 / 12) ** 0.5  # of numbers that are 0..15 with equal chance


def write_gguf(shape: Shape, file: Path) -> None:
    """Write the file; needs the package gguf."""
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")  # only token ids go in and out
    rng = np.random.default_rng(shape.seed)
    q4 = gguf.GGMLQuantizationType.Q4_0
    for name, rows, columns in _matrices(shape):
        if columns == 1:
            writer.add_tensor(f"{name}.weight", np.ones(rows, np.float32))
        else:
            writer.add_tensor(f"{name}.weight", _q4_0(rng, rows, columns), raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(shape: Shape) -> list[tuple[str, int, int]]:
    """(name, outputs, inputs) of all weights; gains have one input."""
    hidden, inner, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_size
    found = [
        ("token_embd", shape.vocab, hidden), ("output", shape.vocab, hidden),
        ("output_norm", hidden, 1),
    ]  # fmt: skip
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        found += [
            (f"{block}.attn_norm", hidden, 1), (f"{block}.ffn_norm", hidden, 1),
            (f"{block}.attn_q", hidden, hidden), (f"{block}.attn_k", kv, hidden),
            (f"{block}.attn_v", kv, hidden), (f"{block}.attn_output", hidden, hidden),
            (f"{block}.ffn_gate", inner, hidden), (f"{block}.ffn_up", inner, hidden),
            (f"{block}.ffn_down", hidden, inner),
        ]  # fmt: skip
    return found


def _q4_0(rng: Any, rows: int, columns: int) -> NDArray[np.uint8]:
    blocks = rng.integers(0, 256, (rows, columns // _BLOCK, _BLOCK_BYTES), dtype=np.uint8)
    scale = np.float16(1 / (_CODES_DEVIATION * columns**0.5))
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    flat: NDArray[np.uint8] = blocks.reshape(rows, -1)
    return flat
