"""Give linears that other ops hold inside a MatMul or Gemm of their own, so that they are found.

    com.microsoft.Attention(x, W, b, mask)   ->  MatMul, Add, Split, MultiHeadAttention; both ops
                                                 take a mask, or the number of tokens of each row
    com.microsoft.FusedMatMul(x, W), alpha   ->  MatMul(x, alpha W)
    com.microsoft.FusedGemm(x, W, b)         ->  Gemm, then the activation
    Gemm with alpha or beta                  ->  Gemm(x, alpha W, beta b)
    MatMul(x, W [1, K, N])                   ->  MatMul(x, W [K, N])
    Einsum("bsk,kn->bsn", x, W)              ->  MatMul(x, W)

ONNX Runtime's optimizers write the first three. Weights are made anew when they are read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.constants import Array, constant_of
from fptq_onnx.graph.linears.einsum import plain_product
from fptq_onnx.graph.linears.weights_in_other_ops import attention_obstacle
from fptq_onnx.graph.op_domains import MSFT_DOMAIN, ONNX_DOMAIN, domain_of
from fptq_onnx.graph.shapes.rank import least_rank
from fptq_onnx.passes._contract import PassResult, rewrite_each
from fptq_onnx.passes._edit import constant_initializer, put_in_place, remade

_ACTIVATIONS = ("Relu", "Tanh", "Sigmoid")
_KEPT_BY_ATTENTION = ("num_heads", "unidirectional", "mask_filter_value", "scale")


def extract_linears(model: ir.Model) -> PassResult:
    """Rewrite in place what can be rewritten without a doubt.

    Args:
        model: its main graph is looked at. What is left, find_linears names with the reason.
    """

    def rewrite(node: ir.Node) -> bool:
        rule = _RULES.get((domain_of(node), node.op_type))
        return rule is not None and rule(model.graph, node)

    return rewrite_each(model.graph, rewrite)


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _float(node: ir.Node, name: str) -> float:
    found = node.attributes.get(name)
    return 1.0 if found is None else float(found.value)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _split_attention(graph: ir.Graph, node: ir.Node) -> bool:
    if attention_obstacle(node):
        return False
    x, w, bias, mask, more = (_input(node, index) for index in (0, 1, 2, 3, 5))
    weight = constant_of(w)
    assert weight is not None
    sizes = node.attributes.get("qkv_hidden_sizes")
    parts = list(sizes.as_ints()) if sizes is not None else [weight.shape[1] // 3] * 3
    name = node.outputs[0].name or ""  # no two values share one
    product = ir.node("MatMul", [x, w], name=f"{name}/qkv")
    product.outputs[0].name = f"{name}/qkv"
    nodes, packed = [product], product.outputs[0]
    if bias is not None:
        add = ir.node("Add", [packed, bias], name=f"{name}/qkv_bias")
        add.outputs[0].name = f"{name}/qkv_bias"
        nodes, packed = [product, add], add.outputs[0]
    split_sizes = constant_initializer(graph, f"{name}/qkv_sizes", np.array(parts, np.int64))
    split = ir.node(
        "Split", [packed, split_sizes], {"axis": -1}, num_outputs=3, name=f"{name}/split"
    )
    for output, part in zip(split.outputs, "qkv", strict=True):
        output.name = f"{name}/{part}"
    attributes = [node.attributes[key] for key in _KEPT_BY_ATTENTION if key in node.attributes]
    attention = ir.Node(
        MSFT_DOMAIN,
        "MultiHeadAttention",
        [*split.outputs, None, mask, more],
        attributes,
        name=node.name,
    )
    put_in_place(graph, node, [*nodes, split, attention])
    return True


def _plain_matmul(graph: ir.Graph, node: ir.Node) -> bool:
    weight = constant_of(_input(node, 1))
    transposes = ("transA", "transBatchA", "transBatchB")
    if weight is None or len(weight.shape) != 2 or any(_integer(node, key) for key in transposes):
        return False
    alpha, turned = _float(node, "alpha"), bool(_integer(node, "transB"))
    w = remade(graph, node, weight, lambda array: _scaled(array.T if turned else array, alpha),
                weight.shape[::-1] if turned else weight.shape)  # fmt: skip
    put_in_place(graph, node, [ir.node("MatMul", [node.inputs[0], w], name=node.name)])
    return True


def _plain_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    weight, bias = constant_of(_input(node, 1)), constant_of(_input(node, 2))
    alpha, beta = _float(node, "alpha"), _float(node, "beta")
    if weight is None or (bias is None and _input(node, 2) is not None) or (alpha, beta) == (1, 1):
        return False
    inputs = [
        node.inputs[0],
        remade(graph, node, weight, lambda array: _scaled(array, alpha), weight.shape),
    ]
    if bias is not None:
        inputs.append(remade(graph, node, bias, lambda array: _scaled(array, beta), bias.shape, 2))
    kept = {key: _integer(node, key) for key in ("transA", "transB") if key in node.attributes}
    put_in_place(graph, node, [ir.node("Gemm", inputs, kept, name=node.name)])
    return True


def _open_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    activation = node.attributes.get("activation")
    kind = "" if activation is None else activation.as_string()
    if kind not in _ACTIVATIONS or constant_of(_input(node, 1)) is None:
        return False
    kept = {
        key: node.attributes[key].value
        for key in ("transA", "transB", "alpha", "beta")
        if key in node.attributes
    }
    gemm = ir.node("Gemm", list(node.inputs), kept, name=node.name)
    gemm.outputs[0].name = f"{node.outputs[0].name}/product"
    then = ir.node(kind, [gemm.outputs[0]], name=f"{node.outputs[0].name}/{kind}")
    put_in_place(graph, node, [gemm, then])
    _plain_gemm(graph, gemm)
    return True


def _flat_weight(graph: ir.Graph, node: ir.Node) -> bool:
    weight, x = constant_of(_input(node, 1)), _input(node, 0)
    if weight is None or x is None or len(weight.shape) < 3 or set(weight.shape[:-2]) != {1}:
        return False
    if constant_of(x) is not None or least_rank(x) < len(weight.shape):
        return False  # the weight's axes would be the product's
    shape = weight.shape[-2:]
    w = remade(graph, node, weight, lambda array: array.reshape(shape), shape)
    put_in_place(graph, node, [ir.node("MatMul", [x, w], name=node.name)])
    return True


def _einsum(graph: ir.Graph, node: ir.Node) -> bool:
    held = [constant_of(value) for value in node.inputs]
    matrices = [i for i, each in enumerate(held) if each is not None and len(each.shape) == 2]
    if len(held) != 2 or len(matrices) != 1 or None not in held:
        return False
    found = plain_product(node.attributes["equation"].as_string(), matrices[0])
    weight = held[matrices[0]]
    if found is None or weight is None:
        return False
    w = remade(graph, node, weight, lambda array: array.T if found.turned else array,
               weight.shape[::-1] if found.turned else weight.shape)  # fmt: skip
    put_in_place(graph, node, [ir.node("MatMul", [node.inputs[found.x], w], name=node.name)])
    return True


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1 else (array.astype(np.float32) * np.float32(factor))


_RULES: dict[tuple[str, str], Callable[[ir.Graph, ir.Node], bool]] = {
    (MSFT_DOMAIN, "Attention"): _split_attention,
    (MSFT_DOMAIN, "FusedMatMul"): _plain_matmul,
    (MSFT_DOMAIN, "FusedGemm"): _open_gemm,
    (ONNX_DOMAIN, "Gemm"): _plain_gemm,
    (ONNX_DOMAIN, "MatMul"): _flat_weight,
    (ONNX_DOMAIN, "Einsum"): _einsum,
}
