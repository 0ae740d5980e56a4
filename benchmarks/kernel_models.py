"""One-node models (times copies) of a linear: ours, and what stock ONNX Runtime offers instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.numerics.panels import LAYOUT_VERSION, line_bytes, panel_count, step_count
from fptq_onnx.runtime import native_library as runtime

Nodes = Callable[[ir.Value, "Tensors", int, int], ir.Node]


@dataclass(frozen=True)
class Implementation:
    """One way of computing a linear.

    name: for the table; isa: the kernel forced, "" for stock; block: weights per scale.
    bytes_per_weight: of codes and scales, for the bandwidth.
    """

    name: str
    isa: str
    block: int
    bytes_per_weight: float
    node: Nodes


class Tensors:
    """Random initializers of one copy of a linear, by shape and type.

    Every copy has its own: ONNX Runtime keeps equal prepacked weights once.
    """

    def __init__(self, copy: int) -> None:
        self._prefix = f"t{copy}_"
        self._rng = np.random.default_rng(copy)
        self.values: list[ir.Value] = []

    def add(self, array: NDArray[Any]) -> ir.Value:
        """Register an array."""
        tensor = ir.tensor(array, name=f"{self._prefix}{len(self.values)}")
        value = ir.Value(
            name=tensor.name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.values.append(value)
        return value

    def codes(self, *shape: int, signed: bool = False) -> ir.Value:
        """Random bytes."""
        raw = self._rng.integers(0, 256, shape, dtype=np.uint8)
        return self.add(raw.view(np.int8) if signed else raw)

    def full(self, value: float, *shape: int, dtype: Any = np.float32) -> ir.Value:
        """A constant array."""
        return self.add(np.full(shape, value, dtype))


def ours(isa: str, block: int, *, symmetric: bool = True, static: bool = False) -> Implementation:
    """fptq::MatMulW4A8 with a forced kernel."""

    def node(a: ir.Value, tensors: Tensors, k: int, n: int) -> ir.Node:
        group_shape = (panel_count(n), -(-k // block), 64)
        inputs = [
            a,
            tensors.codes(panel_count(n), step_count(k), line_bytes(4)),
            tensors.full(0.01, *group_shape),
        ]
        if not symmetric:
            inputs.append(tensors.full(7, *group_shape, dtype=np.uint8))
        attributes: dict[str, Any] = {
            "K": k,
            "N": [n],
            "block_size": block,
            "layout": LAYOUT_VERSION,
            "activation": "static" if static else "per_token",
        }
        if static:
            attributes["a_scale"] = 0.03
        return ir.node("MatMulW4A8", inputs, attributes, domain="fptq")

    kind = f"{'static' if static else 'per-token'}{'' if symmetric else ' asym'}"
    return Implementation(f"ours {isa} {block} {kind}", isa, block, 0.5 + 4 / block, node)


def matmul_nbits(block: int) -> Implementation:
    """com.microsoft::MatMulNBits, 4 bits, int8 activations."""

    def node(a: ir.Value, tensors: Tensors, k: int, n: int) -> ir.Node:
        inputs = [
            a,
            tensors.codes(n, k // block, block // 2),
            tensors.full(0.01, n, k // block),
        ]
        attributes = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 4}
        return ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft")

    return Implementation(f"MatMulNBits {block}", "", block, 0.5 + 4 / block, node)


def _w8a8(name: str, op_type: str) -> Implementation:
    def node(a: ir.Value, tensors: Tensors, k: int, n: int) -> ir.Node:
        weight, scale = tensors.codes(k, n, signed=True), tensors.full(0.01, n)
        if op_type == "DynamicQuantizeMatMul":
            return ir.node(op_type, [a, weight, scale], domain="com.microsoft")
        a_scale, a_zero = tensors.full(0.03), tensors.full(128, dtype=np.uint8)
        quantized = ir.node("QuantizeLinear", [a, a_scale, a_zero])
        zero = tensors.full(0, n, dtype=np.int8)
        inputs = [quantized.outputs[0], weight, a_scale, scale, a_zero, zero]
        return ir.node(op_type, inputs, domain="com.microsoft")

    return Implementation(name, "", -1, 1.0, node)


def stock() -> list[Implementation]:
    """What a user of stock ONNX Runtime could pick."""

    def fp32(a: ir.Value, tensors: Tensors, k: int, n: int) -> ir.Node:
        return ir.node("MatMul", [a, tensors.full(0.01, k, n)])

    return [
        matmul_nbits(128),
        matmul_nbits(32),
        _w8a8("W8A8 static", "MatMulIntegerToFloat"),
        _w8a8("W8A8 dynamic", "DynamicQuantizeMatMul"),
        Implementation("fp32", "", 0, 4.0, fp32),
    ]


def write_model(implementation: Implementation, k: int, n: int, copies: int, folder: Path) -> Path:
    """A model of `copies` linears that all read the input A; outputs Y0, Y1, ..."""
    a = ir.Value(name="A", shape=ir.Shape(["M", k]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, outputs, initializers = [], [], []
    for copy in range(copies):
        tensors = Tensors(copy)
        node = implementation.node(a, tensors, k, n)
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        nodes += [node] if producer is None else [producer, node]
        output = node.outputs[0]
        output.name, output.dtype = f"Y{copy}", ir.DataType.FLOAT
        outputs.append(output)
        initializers += tensors.values
    imports = {"": 21, "com.microsoft": 1, "fptq": 1}
    graph = ir.Graph(
        [a], outputs, nodes=nodes, initializers=initializers, opset_imports=imports, name="g"
    )
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    ir.save(ir.Model(graph, ir_version=10), path, external_data="model.data")
    return path


def session(
    implementation: Implementation, k: int, n: int, copies: int, threads: int, folder: Path
) -> ort.InferenceSession:
    """A session over such a model, with the kernel forced."""
    path = write_model(implementation, k, n, copies, folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that go on spinning after a run would slow down the session whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # a kernel this CPU lacks is no error here
    runtime.register(options)
    with _forced(implementation.isa):
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _forced(isa: str) -> Iterator[None]:
    """FPTQ_FORCE_KERNEL while a session is made: that is when the library reads it."""
    before = os.environ.get("FPTQ_FORCE_KERNEL")
    os.environ["FPTQ_FORCE_KERNEL"] = isa
    try:
        yield
    finally:
        del os.environ["FPTQ_FORCE_KERNEL"]
        if before is not None:
            os.environ["FPTQ_FORCE_KERNEL"] = before
