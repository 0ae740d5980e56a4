"""Make the demo model: an exported folder with its large float32 weights stored as float16.

    weight (float32 initializer) -> consumer
becomes
    weight_fp16 (float16 initializer) -> Cast(to float) = weight -> consumer

onnxruntime folds the Casts at load, so the arithmetic stays float32; only the weights are rounded
(relative error 2^-11). The same input gives the same bytes.

    python models/embed.py EXPORT OUT --heldout stories.txt

EXPORT is a folder with model.onnx, tokenizer.json, tokenizer_config.json and genai_config.json;
OUT must not exist.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

COPIED = ("genai_config.json", "tokenizer.json", "tokenizer_config.json")
# Smaller tensors (norm gains, rotary tables) stay float32: they weigh little and matter much.
MIN_ELEMENTS = 32768
SEPARATOR = "<|endoftext|>\n"


def store_as_float16(model: ir.Model) -> int:
    """Replace every large float32 matrix by a float16 one behind a Cast.

    Args:
        model: changed in place. Only matrices are touched: linears and embeddings.

    Returns:
        The number of tensors replaced.

    Raises:
        ValueError: a weight that float16 cannot hold.
    """
    graph = model.graph
    first = graph[0]
    replaced = 0
    for name, old in list(graph.initializers.items()):
        tensor = old.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        if tensor.size < MIN_ELEMENTS:
            continue
        weights = tensor.numpy()
        if np.abs(weights).max() > np.finfo(np.float16).max:
            raise ValueError(f"{name} does not fit float16")
        half = ir.Value(
            name=f"{name}_fp16",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=ir.Shape(weights.shape),
        )
        half.const_value = ir.tensor(weights.astype(np.float16), name=half.name)
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"{name}_to_float")
        old.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(half)
        cast.outputs[0].name = name
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        cast.outputs[0].shape = ir.Shape(weights.shape)
        graph.insert_before(first, cast)
        replaced += 1
    return replaced


def first_documents(text: str, max_bytes: int) -> str:
    """Whole documents from the start of a text, with their separators, up to a size in UTF-8."""
    kept, size = [], 0
    for document in text.split(SEPARATOR):
        size += len((document + SEPARATOR).encode())
        if size > max_bytes:
            break
        kept.append(document + SEPARATOR)
    return "".join(kept)


def main(arguments: list[str]) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Make the embedded demo model.")
    parser.add_argument("export", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", type=Path, help="text to take the held-out stories from")
    parser.add_argument("--heldout-bytes", type=int, default=50_000)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)  # refuses to overwrite
    model = ir.load(options.export / "model.onnx")
    replaced = store_as_float16(model)
    # 64-byte alignment lets onnxruntime use the memory-mapped weights where they lie.
    ir.save(
        model,
        options.out / "model.onnx",
        external_data="model.onnx.data",
        alignment=64,
        align_threshold=0,
        max_workers=1,
    )
    for name in COPIED:
        shutil.copyfile(options.export / name, options.out / name)
    if options.heldout is not None:
        text = first_documents(options.heldout.read_text("utf-8"), options.heldout_bytes)
        (options.out / "heldout.txt").write_text(text, "utf-8")
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {replaced} weights as float16, {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main(sys.argv[1:])
