"""Write a LLaMA with random weights as onnxruntime-genai's model builder would write it.

    python tools/make_llama.py build/llama-1b

The default is the shape of a 1.1 B-parameter LLaMA. It needs no checkpoint, no network and no
torch. Speed and memory do not depend on what the weights are, as long as activations stay of
ordinary size: every matrix keeps the variance of what it multiplies, and the two that add to the
residual are scaled down by the depth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import tokenizers
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.output_folder import atomic_folder
from fptq_onnx.model_io.save import save_model
from fptq_onnx.progress import tracker

_INT64, _INT32, _FLOAT = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT
_EPSILON = 1e-5
_ROWS = 1 << 20  # weights drawn at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA, named as in config.json."""

    hidden: int = 2048
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4
    intermediate: int = 5632
    vocab: int = 32000
    context: int = 2048
    seed: int = 0

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


class _Builder:
    """Nodes and weights of one graph, in order."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, *, width: int | None = None,
        domain: str = "", outputs: int = 1, **attributes: int | float | str,
    ) -> ir.Node:  # fmt: skip
        """Add a node; with a width, its first output is float [batch, sequence, width]."""
        made = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, output in enumerate(made.outputs):
            output.name = f"{name}/output_{index}"
        if width is not None:
            made.outputs[0].dtype = _FLOAT
            made.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", width])
        self.nodes.append(made)
        return made

    def weight(
        self,
        name: str,
        dims: tuple[int, ...],
        dtype: ir.DataType,
        make: Callable[[], ir.TensorProtocol],
    ) -> ir.Value:
        """A weight that is made when it is written."""
        lazy = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(dims), name=name)
        value = ir.Value(
            name=name, const_value=lazy, shape=ir.Shape(dims), type=ir.TensorType(dtype)
        )
        self.weights[name] = value
        return value

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """A small weight, given as it is."""
        tensor = ir.tensor(array, name=name)
        return self.weight(name, array.shape, tensor.dtype, lambda: tensor)

    def normal(self, name: str, rows: int, columns: int, deviation: float) -> ir.Value:
        """A matrix of normal numbers, the same for a seed and a name."""
        seed = [self.shape.seed, *name.encode()]

        def draw() -> ir.TensorProtocol:
            rng = np.random.default_rng(seed)
            array = np.empty(rows * columns, np.float32)
            for start in range(0, array.size, _ROWS):  # no second copy while scaling
                piece = array[start : start + _ROWS]
                rng.standard_normal(out=piece, dtype=np.float32)
                piece *= deviation
            return ir.tensor(array.reshape(rows, columns), name=name)

        return self.weight(name, (rows, columns), _FLOAT, draw)

    def linear(
        self, source: ir.Value, name: str, columns: int, *, k: int, gain: float = 1.0
    ) -> ir.Value:
        """A MatMul whose output has `gain` times the deviation of its input [..., k]."""
        weight = self.normal(f"{name[1:].replace('/', '.')}.weight", k, columns, gain / k**0.5)
        return self.node("MatMul", [source, weight], f"{name}/MatMul", width=columns).outputs[0]

    def skip_norm(self, source: ir.Value, skip: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """RMS norm of a sum: the norm, and the sum itself."""
        made = self.node(
            "SkipSimplifiedLayerNormalization", [source, skip, self.gain(name)], name,
            width=self.shape.hidden, domain="com.microsoft", outputs=4, epsilon=_EPSILON,
        )  # fmt: skip
        for index in (1, 2):
            made.outputs[index].name = ""
        made.outputs[3].dtype, made.outputs[3].shape = _FLOAT, made.outputs[0].shape
        return made.outputs[0], made.outputs[3]

    def gain(self, name: str) -> ir.Value:
        """The weight of a norm: not all ones, so that folding into it can be seen to be right."""
        rng = np.random.default_rng([self.shape.seed, *name.encode()])
        array = rng.uniform(0.5, 1.5, self.shape.hidden).astype(np.float32)
        return self.constant(f"{name[1:].replace('/', '.')}.weight", array)


def _lengths(builder: _Builder, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """seqlens_k and total_sequence_length of GroupQueryAttention, from the attention mask."""
    one = builder.constant("one", np.array([1], np.int64))
    count = builder.node("ReduceSum", [mask, one], "/mask/ReduceSum", keepdims=0).outputs[0]
    last = builder.node("Sub", [count, one], "/mask/Sub").outputs[0]
    seqlens = builder.node("Cast", [last], "/mask/Sub/Cast", to=int(_INT32)).outputs[0]
    shape = builder.node("Shape", [mask], "/mask/Shape").outputs[0]
    axis = builder.constant("axis", np.array(1, np.int64))
    total = builder.node("Gather", [shape, axis], "/mask/Gather", axis=0).outputs[0]
    cast = builder.node("Cast", [total], "/mask/Gather/Cast", to=int(_INT32)).outputs[0]
    return seqlens, cast


def _rotary(builder: _Builder) -> tuple[ir.Value, ir.Value]:
    shape = builder.shape
    frequencies = 10000.0 ** (-np.arange(0, shape.head_size, 2) / shape.head_size)
    angles = np.outer(np.arange(shape.context), frequencies)
    cos = builder.constant("cos_cache", np.cos(angles).astype(np.float32))
    return cos, builder.constant("sin_cache", np.sin(angles).astype(np.float32))


def llama(shape: Shape) -> ir.Model:
    """The graph; its weights are drawn when they are written."""
    builder = _Builder(shape)
    ids = _input("input_ids", _INT64, ["batch_size", "sequence_length"])
    mask = _input("attention_mask", _INT64, ["batch_size", "total_sequence_length"])
    inputs, outputs = [ids, mask], []
    lengths = _lengths(builder, mask)
    rotary = _rotary(builder)
    table = builder.normal("model.embed_tokens.weight", shape.vocab, shape.hidden, 1.0)
    embedded = builder.node("Gather", [table, ids], "/model/embed_tokens", width=shape.hidden)
    residual = embedded.outputs[0]
    first = "/model/layers.0/input_layernorm"
    norm = builder.node(
        "SimplifiedLayerNormalization", [residual, builder.gain(first)], first,
        width=shape.hidden, axis=-1, epsilon=_EPSILON, stash_type=1,
    ).outputs[0]  # fmt: skip
    depth = (2 * shape.layers) ** -0.5
    width = shape.heads * shape.head_size
    for layer in range(shape.layers):
        name = f"/model/layers.{layer}"
        past = [_cache(shape, "past_key_values", layer, kind, "past") for kind in ("key", "value")]
        inputs += past
        packed = builder.linear(
            norm, f"{name}/attn/qkv_proj", width + 2 * shape.kv_heads * shape.head_size,
            k=shape.hidden,
        )  # fmt: skip
        attention = builder.node(
            "GroupQueryAttention", [packed, None, None, *past, *lengths, *rotary],
            f"{name}/attn/GroupQueryAttention", width=width, domain="com.microsoft", outputs=3,
            num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.head_size**-0.5,
            do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip
        for output, kind in zip(attention.outputs[1:], ("key", "value"), strict=True):
            spec = _cache(shape, "present", layer, kind, "total")
            output.name, output.type, output.shape = spec.name, spec.type, spec.shape
            outputs.append(output)
        added = builder.linear(
            attention.outputs[0], f"{name}/attn/o_proj", shape.hidden, k=width, gain=depth
        )
        norm, residual = builder.skip_norm(residual, added, f"{name}/post_attention_layernorm")
        gate = builder.linear(norm, f"{name}/mlp/gate_proj", shape.intermediate, k=shape.hidden)
        up = builder.linear(norm, f"{name}/mlp/up_proj", shape.intermediate, k=shape.hidden)
        product = gate
        for op, other, what in (("Sigmoid", None, "act_fn/Sigmoid"), ("Mul", gate, "act_fn/Mul"),
                                ("Mul", up, "Mul")):  # fmt: skip
            operands = [product] if other is None else [product, other]
            made = builder.node(op, operands, f"{name}/mlp/{what}", width=shape.intermediate)
            product = made.outputs[0]
        # SiLU times a normal number has about 0.6 of its deviation.
        added = builder.linear(
            product, f"{name}/mlp/down_proj", shape.hidden, k=shape.intermediate, gain=depth / 0.6
        )
        last = layer + 1 == shape.layers
        after = "/model/final_norm" if last else f"/model/layers.{layer + 1}/input_layernorm"
        norm, residual = builder.skip_norm(residual, added, after)
    logits = builder.linear(norm, "/lm_head", shape.vocab, k=shape.hidden)
    logits.name = "logits"
    graph = ir.Graph(
        inputs, [logits, *outputs], nodes=builder.nodes, initializers=[*builder.weights.values()],
        opset_imports={"": 21, "com.microsoft": 1}, name="llama",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10, producer_name="make_llama")


def _input(name: str, dtype: ir.DataType, dims: Sequence[str | int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def _cache(shape: Shape, prefix: str, layer: int, kind: str, length: str) -> ir.Value:
    dims: list[str | int] = [
        "batch_size",
        shape.kv_heads,
        f"{length}_sequence_length",
        shape.head_size,
    ]
    return _input(f"{prefix}.{layer}.{kind}", _FLOAT, dims)


def write_configs(shape: Shape, folder: Path) -> None:
    """genai_config.json, and a tokenizer that has a word for every id ("w17" is 17)."""
    names = {"past_key_names": "past_key_values.%d.key",
             "past_value_names": "past_key_values.%d.value"}  # fmt: skip
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx", "head_size": shape.head_size, "hidden_size": shape.hidden,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value"},
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }  # fmt: skip
    model = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "type": "llama",
             "context_length": shape.context, "vocab_size": shape.vocab,
             "decoder": decoder}  # fmt: skip
    search = {"do_sample": False, "max_length": shape.context, "past_present_share_buffer": True}
    text = json.dumps({"model": model, "search": search}, indent=2)
    (folder / "genai_config.json").write_text(text + "\n", encoding="utf-8")
    words = {f"w{index}": index for index in range(shape.vocab)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_llama(shape: Shape, folder: Path, *, quiet: bool = True) -> None:
    """Write the model folder, complete or not at all.

    Raises:
        FptqError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise FptqError(f"{folder} exists: remove it or choose another")
    with atomic_folder(folder) as work:
        save_model(llama(shape), work, tracker("drawing weights", quiet))
        write_configs(shape, work)


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description="A LLaMA with random weights, as ONNX.")
    parser.add_argument("output", type=Path, help="folder to write")
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args())
    output = options.pop("output")
    try:
        write_llama(Shape(**options), output, quiet=False)
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
