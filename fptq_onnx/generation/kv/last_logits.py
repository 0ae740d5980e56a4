"""Compute the logits of the last position only, and all that leads to nothing else.

    logits = head(norm(r + mlp(x)))    ->    logits = head(norm(r' + mlp(x'))), r' = r[:, -1:], ...

Generation looks at one row of logits in each call. The head is the largest matrix of a model, and a
prompt has hundreds of rows; in the last layer, all after the attention serves those rows alone as
well. So the cut is made as early as it can be: nodes that treat each position by itself, and whose
outputs go nowhere but to the logits, get the last position only.

The graph is cut as protobuf, each time a model is opened: making a graph of onnx_ir for that would
take longer than the cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, MSFT_DOMAIN, ONNX_DOMAIN, one_name
from fptq_onnx.runtime.proto_graph import ProtoGraph, integers_of

# Ops that treat every [..., channels] row by itself. Elementwise ones broadcast constants.
_ELEMENTWISE = {
    "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Silu", "Softplus", "Sqrt",
    "Sub", "Swish", "Tanh",
}  # fmt: skip
_ROWWISE = {
    ONNX_DOMAIN: {
        *_ELEMENTWISE, "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    },
    MSFT_DOMAIN: {
        "BiasGelu", "FastGelu", "Gelu", "MatMulNBits", "QuickGelu",
        "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    },
    FPTQ_DOMAIN: {"MatMulW4A8", "MatMulW8A8"},
}  # fmt: skip
_LAST_AXIS_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_LAST = "keep_last_logits/last"


def keep_last_logits(proto: onnx.GraphProto, logits: str) -> int:
    """Change the graph in place; the logits become [batch, 1, vocabulary].

    Args:
        proto: a decoder; shapes of its values as far as they are known are relied on.
        logits: name of the output.

    Returns:
        How many nodes compute the last position only; 0 where the graph was left as it is, because
        nothing says that its rows are [batch, sequence, channels].
    """
    rows = _Rows(ProtoGraph(proto))
    if logits not in rows.graph.outputs or rows.graph.rank(logits) != 3:
        return 0
    inside: set[int] = set()
    for number, node in reversed(list(enumerate(proto.node))):
        if rows.treats_each(node) and rows.leads_to(node, logits, inside) and rows.enter(node):
            inside.add(number)
    if not inside:
        return 0
    shortened = {name for number in inside for name in proto.node[number].output}
    entering: dict[str, None] = {}
    for number in sorted(inside, reverse=True):
        for name in proto.node[number].input:
            if name and not rows.constant(name) and rows.graph.producers.get(name) not in inside:
                entering[name] = None
    proto.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), _LAST))
    cut = {name: f"keep_last_logits/{place}" for place, name in enumerate(entering)}
    for number in inside:
        node = proto.node[number]
        node.input[:] = [f"{cut[name]}/output" if name in cut else name for name in node.input]
    # From the end, so that the numbers of the nodes before stay what they are.
    makers = rows.graph.producers
    for name in sorted(cut, key=lambda name: makers.get(name, -1), reverse=True):
        gather = onnx.NodeProto(
            op_type="Gather", name=cut[name], input=[name, _LAST], output=[f"{cut[name]}/output"],
            attribute=[onnx.AttributeProto(name="axis", type=onnx.AttributeProto.INT, i=1)],
        )  # fmt: skip
        proto.node.insert(makers.get(name, -1) + 1, gather)
    for value in (*proto.value_info, *proto.output):
        axes = value.type.tensor_type.shape.dim
        if value.name in shortened and len(axes) == 3:
            axes[1].dim_value = 1
    return len(inside)


@dataclass
class _Rows:
    """Which nodes of a graph treat [batch, sequence, channels] row by row."""

    graph: ProtoGraph
    _constants: dict[str, bool] = field(default_factory=dict)

    def treats_each(self, node: onnx.NodeProto) -> bool:
        """Whether the op treats every row by itself, with these constants."""
        domain = one_name(node.domain)
        if node.op_type == "MatMul" and domain == ONNX_DOMAIN:
            weight = node.input[1]
            return self.constant(weight) and self.graph.rank(weight) == 2
        if node.op_type not in _ROWWISE.get(domain, ()):
            return False
        if node.op_type in _LAST_AXIS_NORMS:
            return integers_of(node).get("axis", -1) in (-1, 2)
        # A constant of rank 3 could differ from position to position: a table of positions, a mask.
        return node.op_type not in _ELEMENTWISE or all(
            not self.constant(name) or self._flat(name) for name in node.input if name
        )

    def leads_to(self, node: onnx.NodeProto, logits: str, inside: set[int]) -> bool:
        """Whether all that reads the node is inside, or it gives the logits."""
        used = False
        for name in node.output:
            readers = [number for number, _ in self.graph.consumers.get(name, ())]
            if name in self.graph.inner or any(number not in inside for number in readers):
                return False
            if name in self.graph.outputs and name != logits:
                return False
            used = used or name == logits or bool(readers)
        return used

    def enter(self, node: onnx.NodeProto) -> bool:
        """Whether what a node with rows as its output computes them from is rows as well.

        Many exporters leave shapes out. Then an input has the rank of the output where the op lets
        no other input decide it.
        """
        rank = self.graph.rank
        moving = [name for name in node.input if name and not self.constant(name)]
        if not moving:
            return False  # a weight's own Cast
        if all(rank(name) == 3 for name in moving):
            return True
        fixed = [name for name in node.input if name and self.constant(name)]
        alone = len(moving) == 1 and moving[0] == node.input[0] and rank(moving[0]) is None
        if node.op_type in _ELEMENTWISE:
            return alone and all((rank(name) or 0) < 3 for name in fixed)
        return alone

    def constant(self, name: str) -> bool:
        """Whether a value is a weight, or made of weights alone: cast, transposed, dequantized."""
        known = self._constants.get(name)
        if known is None:
            node = self.graph.producer(name)
            if node is None:
                known = name in self.graph.initializers and name not in self.graph.inputs
            else:
                known = all(self.constant(source) for source in node.input if source) and (
                    node.op_type == "Constant" or len(node.input) > 0
                )
            self._constants[name] = known
        return known

    def _flat(self, name: str) -> bool:
        """Whether a constant is the same for all positions."""
        axes = self.graph.shapes.get(name)
        return axes is not None and (len(axes) < 2 or axes[-2] == 1)
