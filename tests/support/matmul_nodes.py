"""One-node models of fptq::MatMulW4A8 and sessions that run them through the library."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fptq_onnx.numerics.group_weights import GroupWeights
from fptq_onnx.numerics.int8 import quantize_per_token, quantize_static
from fptq_onnx.numerics.matmul_w4a8 import matmul_w4a8
from fptq_onnx.numerics.panels import pack_codes, pack_group_values
from fptq_onnx.numerics.swiglu import gated
from fptq_onnx.runtime import native_library as runtime


@dataclass(frozen=True)
class Node:
    """A MatMulW4A8 node: attributes and constant inputs, all of which a test may replace."""

    attributes: dict[str, Any]
    constants: dict[str, NDArray[Any] | None]  # by input name, in order; None leaves it out
    weights: GroupWeights
    bias: NDArray[np.float32] | None
    dtype: type[np.floating[Any]] = np.float32
    a_shape: tuple[int | str | None, ...] = ("tokens", 0)
    computed: frozenset[str] = field(default_factory=frozenset)  # made graph inputs

    def with_attribute(self, **changes: Any) -> Node:
        """The node with attributes replaced; the value None removes one."""
        merged = {**self.attributes, **changes}
        return replace(self, attributes={k: v for k, v in merged.items() if v is not None})

    def with_constant(self, name: str, value: NDArray[Any] | None) -> Node:
        return replace(self, constants={**self.constants, name: value})


def make_node(
    k: int,
    n: int,
    block: int,
    *,
    symmetric: bool = True,
    bias: bool = False,
    a_scale: float | None = None,
    dtype: type[np.floating[Any]] = np.float32,
    a_shape: tuple[int | str | None, ...] | None = None,
    bits: int = 4,
    parts: tuple[int, ...] | None = None,
    gate: str = "",
    seed: int = 0,
    scale_dtype: type[np.floating[Any]] = np.float32,
) -> Node:
    """Random weights [k, n]; static activations when a_scale is given, else per token.

    With `parts` (columns that add up to n) each begins at a panel of its own. Scales are values of
    scale_dtype and given as such.
    """
    rng = np.random.default_rng(seed)
    groups = 1 if block == -1 else -(-k // block)
    columns = parts or (n,)
    codes = rng.integers(0, 1 << bits, (k, n), dtype=np.uint8)
    scales = np.ldexp(rng.uniform(1, 2, (groups, n)), rng.integers(-9, -3, (groups, n)))
    zeros = None if symmetric else rng.integers(0, 1 << bits, (groups, n), dtype=np.uint8)
    scales = scales.astype(scale_dtype).astype(np.float32)
    weights = GroupWeights(codes, scales, zeros, block, bits)
    bias_values = rng.normal(size=n).astype(np.float32) if bias else None
    attributes: dict[str, Any] = {
        "K": k,
        "N": list(columns),
        "block_size": block,
        "layout": 1,
        "activation": "per_token" if a_scale is None else "static",
    }
    if a_scale is not None:
        attributes["a_scale"] = a_scale
    if gate:
        attributes["gate"] = gate

    def joined(array: NDArray[Any], pack: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
        ends = np.cumsum(columns)[:-1]
        return np.concatenate([pack(part) for part in np.split(array, ends, axis=1)])

    constants: dict[str, NDArray[Any] | None] = {
        "B": joined(codes, lambda part: pack_codes(part, bits)),
        "scales": joined(weights.scales, pack_group_values).astype(scale_dtype),
        # Empty rather than left out: ONNX Runtime up to 1.23 crashes on a node with a custom shape
        # function that skips an input before the last one.
        "zero_points": np.zeros(0, np.uint8) if zeros is None else joined(zeros, pack_group_values),
        "bias": bias_values,
    }
    return Node(attributes, constants, weights, bias_values, dtype, a_shape or ("tokens", k))


def build(node: Node) -> ir.Model:
    """The model of one node: A -> MatMulW4A8 -> Y."""
    kind = ir.DataType.FLOAT16 if node.dtype is np.float16 else ir.DataType.FLOAT
    a = ir.Value(name="A", shape=ir.Shape(node.a_shape), type=ir.TensorType(kind))
    count = 1 if "gate" in node.attributes else len(np.atleast_1d(node.attributes.get("N", 1)))
    names = ["Y", *(f"Y{index}" for index in range(1, count))]
    ys = [ir.Value(name=name, type=ir.TensorType(kind)) for name in names]
    graph_inputs = [a]
    initializers = []
    inputs: list[ir.Value | None] = [a]
    for name, array in node.constants.items():
        if array is None:
            inputs.append(None)
            continue
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        if name in node.computed:
            graph_inputs.append(value)
        else:
            value.const_value = tensor
            initializers.append(value)
        inputs.append(value)
    while inputs[-1] is None:
        inputs.pop()
    op_type = f"MatMulW{node.weights.bits}A8"
    op = ir.node(
        op_type, inputs, attributes=node.attributes, domain="fptq", outputs=ys, name="linear"
    )
    graph = ir.Graph(
        graph_inputs,
        ys,
        nodes=[op],
        initializers=initializers,
        opset_imports={"": 21, "fptq": 1},
        name="one",
    )
    return ir.Model(graph, ir_version=10)


def expected(node: Node, x: NDArray[Any]) -> list[NDArray[Any]]:
    """What the NumPy definition gives for A = x, for each output."""
    rows = x.astype(np.float32).reshape(-1, x.shape[-1])
    if "a_scale" in node.attributes:
        codes, row_scales = quantize_static(rows, np.float32(node.attributes["a_scale"]))
    else:
        codes, row_scales = quantize_per_token(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        y = matmul_w4a8(codes, row_scales, node.weights, node.bias)
        parts = np.split(y, np.cumsum(node.attributes["N"])[:-1], axis=1)
        if "gate" in node.attributes:
            parts = [gated(parts[0], parts[1], node.attributes["gate"])]
        return [part.astype(node.dtype).reshape(*x.shape[:-1], part.shape[1]) for part in parts]


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options with the library registered and ONNX Runtime's own log silenced."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    runtime.register(options)
    return options


def open_session(model: ir.Model | Node, threads: int = 1) -> ort.InferenceSession:
    if isinstance(model, Node):
        model = build(model)
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        session_options(threads),
        providers=["CPUExecutionProvider"],
    )


def assert_exact(node: Node, x: NDArray[Any], threads: int = 1) -> None:
    """Run the node in ONNX Runtime; all bits must be those of the definition (NaN is NaN)."""
    got = open_session(node, threads).run(None, {"A": x})
    for ours, definition in zip(got, expected(node, x), strict=True):
        np.testing.assert_array_equal(ours, definition, strict=True)


@functools.cache
def kernels() -> tuple[list[str], list[str]]:
    """Names of the kernels in the library, and of those that this CPU runs, best first.

    The library says both when it is asked for a kernel that does not exist. Where there is no
    library, "scalar" alone: the tests then fail, each with the reason.
    """
    message = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPTQ_FORCE_KERNEL", "?")
        try:
            open_session(make_node(8, 8, 8))
        except Exception as error:
            message = str(error)
    lists = re.search(r"the kernels are: (.+); this CPU can run: ([\w, ]+)", message)
    if lists is None:
        return ["scalar"], ["scalar"]
    return lists[1].split(", "), lists[2].split(", ")
