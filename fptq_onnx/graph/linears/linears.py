"""Every linear layer of a graph, however the exporter wrote it, as one kind of view.

    MatMul(x, W)                        W [K, N]
    Gemm(x, W, b?)                      W [K, N], or [N, K] with transB = 1
    either, W behind Transpose, Cast, Identity, Constant
    Add(MatMul(x, W), b)                the bias is part of the linear; b [N], or [1, 1, N]

A MatMul of two computed values (attention scores, rotary tables times positions) is not a linear;
each one left out is recorded with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.constants import Array, Constant, constant_of
from fptq_onnx.graph.linears.computed_weights import why_computed
from fptq_onnx.graph.linears.shared_weights import shared_weights
from fptq_onnx.graph.linears.weights_in_other_ops import held_weights
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.rank import least_rank

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
MATMUL_LIKE = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
IN_SUBGRAPH = "it is inside a subgraph (If, Loop or Scan)"


@dataclass(frozen=True)
class Linear:
    """One linear layer: y = x @ W (+ bias).

    name: the node's name, unique in the graph; the key in plans and statistics.
    path: the module path when the exporter left one (a hint for people), else a weight's or the
        node's name.
    x: the activation, last dimension K.
    weight: W as [K, N], not read until loaded.
    bias: [N], or None.
    output: the value after the bias.
    nodes: the nodes that compute it (MatMul or Gemm, then Add when the bias is one).
    """

    name: str
    path: str
    x: ir.Value
    weight: Constant
    bias: Constant | None
    output: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def k(self) -> int:
        """Input channels."""
        return self.weight.shape[0]

    @property
    def n(self) -> int:
        """Output channels."""
        return self.weight.shape[1]

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether the pattern occurs in the node name, the module path or the weight's name."""
        return any(pattern.search(text) for text in (self.name, self.path, self.weight.name))


@dataclass(frozen=True)
class NotLinear:
    """A MatMul-like node that is left alone, and why."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class LinearScan:
    """What `find_linears` saw: the linears in graph order, and the look-alikes with reasons."""

    linears: tuple[Linear, ...]
    others: tuple[NotLinear, ...]

    @property
    def coverage(self) -> str:
        """The sentence users read."""
        total = len(self.linears) + len(self.others)
        return f"{len(self.linears)} of {total} MatMul-like nodes are linears"

    @cached_property
    def shared(self) -> dict[str, str]:
        """See shared_weights. The first look reads weights of equal shape."""
        return shared_weights(self.linears)

    def by_name(self) -> dict[str, Linear]:
        """The linears keyed by node name."""
        return {linear.name: linear for linear in self.linears}


def find_linears(model: ir.Model) -> LinearScan:
    """Find the linears of the main graph. Reads no weight.

    Nodes in subgraphs (If, Loop) are reported, not touched.
    """
    linears: list[Linear] = []
    others: list[NotLinear] = []
    for node in model.graph:
        if node.op_type in MATMUL_LIKE:
            found = _view(node)
            if isinstance(found, Linear):
                linears.append(found)
            else:
                others.append(NotLinear(node.name or "", node.op_type, found))
        elif reason := held_weights(node):
            others.append(NotLinear(node.name or "", node.op_type, reason))
    main = set(map(id, model.graph))
    for node in model.graph.all_nodes():
        if id(node) not in main and (node.op_type in MATMUL_LIKE or held_weights(node)):
            others.append(NotLinear(node.name or "", node.op_type, IN_SUBGRAPH))
    return LinearScan(tuple(linears), tuple(others))


def _view(node: ir.Node) -> Linear | str:
    if domain_of(node) != "":
        return f"{node.domain}.{node.op_type} is not a standard op"
    x, weight = node.inputs[0], constant_of(node.inputs[1])
    if x is None:
        return "it has no left operand"
    if weight is None:
        operand = node.inputs[1]
        if operand is not None and operand.is_graph_input() and operand.const_value is not None:
            return "its weight is also an input of the model, which a caller may override"
        return why_computed(x, operand)
    if len(weight.shape) != 2:
        return f"its constant has rank {len(weight.shape)}, a linear's weight has rank 2"
    if constant_of(x) is not None:
        return "both operands are constant"
    if 0 in weight.shape:
        return f"its weight is empty, shape {weight.shape}"
    if weight.shape[0] == 1:  # positions times frequencies: int4 would ruin every angle
        return "it is an outer product of one input channel (positions times a rotary table)"
    if weight.dtype not in FLOAT_TYPES:
        return f"its weight is {weight.dtype.name}, not a float type this tool quantizes"
    if node.op_type == "Gemm":
        return _gemm_view(node, x, weight)
    return _matmul_view(node, x, weight)


def _matmul_view(node: ir.Node, x: ir.Value, weight: Constant) -> Linear:
    linear = Linear(node.name or "", _path(node, weight), x, weight, None, node.outputs[0], (node,))
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return linear
    add = uses[0].node
    if add.op_type != "Add" or domain_of(add) != "" or add.graph is not node.graph:
        return linear
    bias = constant_of(add.inputs[1 - uses[0].idx])
    if bias is None or bias.dtype != weight.dtype or not _is_bias(bias, linear):
        return linear
    bias = replace(bias, shape=(linear.n,), load=_of_columns(bias.load, linear.n))
    return replace(linear, bias=bias, output=add.outputs[0], nodes=(node, add))


def _is_bias(added: Constant, linear: Linear) -> bool:
    """Whether what is added is a row [N]; [1, 1, N] too, where the product has as many axes."""
    *ones, last = added.shape or (0,)
    if last != linear.n or set(ones) - {1}:
        return False
    return not ones or max(least_rank(linear.output), least_rank(linear.x)) > len(ones)


def _gemm_view(node: ir.Node, x: ir.Value, weight: Constant) -> Linear | str:
    def attribute(name: str, default: float) -> float:
        found = node.attributes.get(name)
        return default if found is None else float(found.value)

    if attribute("transA", 0) != 0:
        return "Gemm with transA = 1 multiplies a transposed activation"
    if attribute("alpha", 1.0) != 1.0 or attribute("beta", 1.0) != 1.0:
        return "Gemm with alpha or beta other than 1"
    if attribute("transB", 0) != 0:
        weight = _transposed(weight)
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_of(node.inputs[2])
        n = weight.shape[1]
        if bias is None or bias.shape not in ((n,), (1, n), (1,), (), (1, 1)):
            return "its Gemm adds something that is not a constant bias of N values, or of one"
        bias = replace(bias, shape=(n,), load=_of_columns(bias.load, n))
    path = _path(node, weight)
    return Linear(node.name or "", path, x, weight, bias, node.outputs[0], (node,))


def _transposed(weight: Constant) -> Constant:
    load = weight.load
    return replace(weight, shape=weight.shape[::-1], load=lambda: np.transpose(load()))


def _of_columns(load: Callable[[], Array], n: int) -> Callable[[], Array]:
    """The bias of each of n columns; one number serves all of them."""
    return lambda: np.broadcast_to(load().reshape(-1), (n,))


def _path(node: ir.Node, weight: Constant) -> str:
    """A readable name: torch's module path, the path in the node's name, a dotted weight name."""
    scopes = _name_scopes(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    if scopes:
        return scopes
    name = node.name or ""
    if "/" in name:
        return re.sub(r"/(MatMul|Gemm|Conv)$", "", name).strip("/").replace("/", ".")
    if "." in weight.name and "::" not in weight.name:
        return re.sub(r"(\.MatMul)?\.weight(_[a-z0-9]+)?$", "", weight.name)
    return name


def _name_scopes(text: str) -> str:
    """The longest dotted module path in torch's list of scopes, as it writes it, or ''."""
    try:
        scopes: Sequence[object] = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError):
        return ""
    dotted = [scope for scope in scopes if isinstance(scope, str) and "." in scope]
    # The last scope is the aten node itself ("linear_3"); the module is the one before.
    return dotted[-1] if dotted else ""
