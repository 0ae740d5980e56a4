"""config.pbtxt of Triton's ONNX Runtime backend, from a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import TensorSpec

CONFIG_FILE = "config.pbtxt"
# Requests put together at most. Triton puts together those of equal shapes only.
MAX_BATCH = 8
_QUEUE_DELAY = 100  # microseconds a request waits for others
_TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "str": "TYPE_STRING",
    **{f"int{n}": f"TYPE_INT{n}" for n in (8, 16, 32, 64)},
    **{f"uint{n}": f"TYPE_UINT{n}" for n in (8, 16, 32, 64)},
}


def triton_config(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    library: str | None,
    comment: str,
) -> str:
    """The text.

    Where every tensor begins with one symbolic axis of the same name, that is the batch: Triton
    then leaves it out of the shapes and may put requests together.

    Args:
        name: of the model, and of its folder in the repository.
        inputs: of the graph.
        outputs: of the graph.
        library: the custom-op library as the server sees it; None for a model that needs none.
        comment: what it is, one line.

    Raises:
        FptqError: a tensor whose type or rank the graph does not say, or Triton does not know.
    """
    batched = _has_batch_axis(inputs, outputs)
    lines = [
        f"# {comment}",
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
    ]
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            lines += [f"{kind} {{", *_tensor(spec, batched), "}"]
    lines += ["instance_group {", "  kind: KIND_CPU", "  count: 1", "}"]
    if batched:
        lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {_QUEUE_DELAY}", "}"]
    if library is not None:
        lines += ["model_operations {", f"  op_library_filename: {_quoted(library)}", "}"]
    return "\n".join(lines) + "\n"


def _has_batch_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    first = {spec.shape[0] if spec.shape else None for spec in (*inputs, *outputs)}
    return len(first) == 1 and isinstance(next(iter(first)), str)


def _tensor(spec: TensorSpec, batched: bool) -> list[str]:
    if spec.shape is None or spec.dtype not in _TYPES:
        raise FptqError(
            f"Triton must be told type and shape of {spec.describe()}, which the graph does not "
            "say: export the model with both"
        )
    axes = [axis if isinstance(axis, int) else -1 for axis in spec.shape[batched:]]
    return [
        f"  name: {_quoted(spec.name)}",
        f"  data_type: {_TYPES[spec.dtype]}",
        f"  dims: [ {', '.join(map(str, axes))} ]",
    ]


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
