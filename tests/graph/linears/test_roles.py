"""Roles and layers of linears, in graphs whose names are read by the test alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from support import attention, gated
from support.blocks import (
    HEAD,
    add,
    blocks_model,
    fused_attention,
    fused_gated,
    norm,
    parallel,
    plain,
    sequential,
)
from support.blocks import attention as attend
from support.blocks import gated as gated_mlp
from support.tiny_graphs import build, run, weight

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.linears.roles import ROLES, Block, find_blocks

QKVO = ("q", "k", "v", "o")
GATED = ("gate", "up", "down")


def blocks_of(model: ir.Model) -> dict[str, Block]:
    """By the name of the value that a linear makes."""
    linears = find_linears(model).linears
    found = find_blocks(linears)
    assert list(found) == [linear.name for linear in linears]
    assert {block.role for block in found.values()} <= set(ROLES)
    return {linear.output.name: found[linear.name] for linear in linears}


def expected(layers: int, *roles: str) -> dict[str, Block]:
    return {f"l{i}_{role}": Block(role, i) for i in range(layers) for role in roles}


def test_layers_one_after_the_other(rng):
    model = blocks_model(rng, sequential(3) + HEAD)
    run(model, {"x": weight(rng, 2, 3, 8)})  # it is a model
    assert blocks_of(model) == expected(3, *QKVO, *GATED) | {"head": Block("head", None)}


def test_attention_and_mlp_beside_each_other(rng):
    found = blocks_of(blocks_model(rng, parallel(3) + HEAD))
    assert found == expected(3, *QKVO, "fc1", "fc2") | {"head": Block("head", None)}


def test_fused_weights(rng):
    text = sequential(2, fused_attention, fused_gated) + HEAD
    found = blocks_of(blocks_model(rng, text))
    wanted = expected(2, "qkv", "o", "down") | {"head": Block("head", None)}
    assert found == wanted | {f"l{i}_gateup": Block("gate_up", i) for i in (0, 1)}


def test_an_encoder_without_a_head_ends_in_its_last_layer(rng):
    found = blocks_of(blocks_model(rng, sequential(2, mlp=plain, last="fc2"), "y"))
    assert found == expected(2, *QKVO, "fc1", "fc2")


def test_norms_after_the_sum(rng):
    text, x = "", "x"
    for at in ("l0", "l1"):
        text += attend(x, at) + add(x, f"{at}_o", f"{at}s") + norm(f"{at}s", f"{at}n")
        text += (
            plain(f"{at}n", at) + add(f"{at}n", f"{at}_fc2", f"{at}t") + norm(f"{at}t", f"{at}y")
        )
        x = f"{at}y"
    # What a classifier does with the first token is not a third MLP.
    text += f" first = Gather<axis = 1>({x}, zero) pool = MatMul(first, l9_Wq) act = Tanh(pool)"
    text += " logits = MatMul(act, Wh)"
    found = blocks_of(blocks_model(rng, text))
    rest = {"pool": Block("other", None), "logits": Block("head", None)}
    assert found == expected(2, *QKVO, "fc1", "fc2") | rest


def test_attention_twice_a_layer(rng):
    text, x = "", "x"
    for at in ("l0", "l1"):
        text += attend(x, at) + add(x, f"{at}_o", f"{at}x1")
        text += attend(f"{at}x1", f"{at}c", "z") + add(f"{at}x1", f"{at}c_o", f"{at}x2")
        text += gated_mlp(f"{at}x2", at) + add(f"{at}x2", f"{at}_down", f"{at}x3")
        x = f"{at}x3"
    found = blocks_of(blocks_model(rng, text + norm(x, "y"), "y"))
    cross = {f"l{i}c_{role}": Block(role, i) for i in (0, 1) for role in QKVO}
    assert found == expected(2, *QKVO, *GATED) | cross


def test_an_mlp_before_attention_and_one_after_it(rng):
    text, x = "", "x"
    for at in ("l0", "l1"):
        text += plain(x, f"{at}a") + add(x, f"{at}a_fc2", f"{at}x1")
        text += attend(f"{at}x1", at) + add(f"{at}x1", f"{at}_o", f"{at}x2")
        text += plain(f"{at}x2", f"{at}b") + add(f"{at}x2", f"{at}b_fc2", f"{at}x3")
        x = f"{at}x3"
    layers = {name: block.layer for name, block in blocks_of(
        blocks_model(rng, text + norm(x, "y"), "y")).items()}  # fmt: skip
    assert layers == {name: int(name[1]) for name in layers}


def test_layers_that_do_not_repeat(rng):
    """A layer begins where attention follows an MLP."""
    text, x = "", "x"
    for at, own in (("l0", True), ("l1", True), ("l2", False)):
        if own:
            text += attend(x, at) + add(x, f"{at}_o", f"{at}x0")
            text += attend(f"{at}x0", f"{at}c", "z") + add(f"{at}x0", f"{at}c_o", f"{at}x1")
        else:
            text += f" {at}x1 = Identity({x})"
        text += plain(f"{at}x1", at) + add(f"{at}x1", f"{at}_fc2", f"{at}x2")
        x = f"{at}x2"
    model = blocks_model(rng, text + norm(x, "y"), "y")
    by_kind = {name: block.layer for name, block in blocks_of(model).items()}
    assert by_kind == {name: min(int(name[1]), 1) for name in by_kind}
    # Names that number the layers settle what the graph does not, if they agree with it.
    for turned in (True, False):
        for node in model.graph:
            if node.op_type == "MatMul":
                number = int(node.outputs[0].name[1])
                number = 2 - number if turned else number
                node.name = f"/model/layers.{number}/{node.outputs[0].name}/MatMul"
        layers = {name: block.layer for name, block in blocks_of(model).items()}
        assert layers == (by_kind if turned else {name: int(name[1]) for name in layers})


def test_layers_of_attention_alone(rng):
    text, x = "", "x"
    for at in ("l0", "l1", "l2"):
        text += attend(x, at).replace(f" {at}_o = MatMul({at}_a, {at}_Wo)", "")
        text += add(x, f"{at}_a", f"{at}x1")
        x = f"{at}x1"
    assert blocks_of(blocks_model(rng, text, x)) == expected(3, "q", "k", "v")


def test_the_sum_inside_a_norm(rng):
    """The fused op that adds to the residual stream and takes the norm of it."""
    text = attend("x", "l0")
    text += " l0n, l0_, l0__, l0x1 = com.microsoft.SkipSimplifiedLayerNormalization(l0_o, x, gain)"
    text += plain("l0n", "l0")
    text += " y = com.microsoft.SkipSimplifiedLayerNormalization(l0x1, l0_fc2, gain)"
    found = blocks_of(blocks_model(rng, text + HEAD))
    assert found == expected(1, *QKVO, "fc1", "fc2") | {"head": Block("head", None)}


def test_a_weighted_mean_of_tokens_is_no_attention(rng):
    """Its softmax is of a linear, not of a product of two computed values."""
    text = sequential(1) + " val = MatMul(y, l9_Wv) score = MatMul(y, l9_Wr) sp = Softmax(score)"
    text += " st = Transpose<perm = [0, 2, 1]>(sp) pooled = MatMul(st, val)"
    text += " logits = MatMul(pooled, Wh)"
    roles = {name: block.role for name, block in blocks_of(blocks_model(rng, text)).items()}
    assert (roles["val"], roles["score"], roles["logits"]) == ("other", "other", "head")


def test_what_is_added_but_is_no_mlp(rng):
    """An activation of the stream itself, and a sum where the product of a gated MLP should be."""
    text = " a = Tanh(x) b = MatMul(a, l9_Wq) y = Add(x, b)"
    assert blocks_of(blocks_model(rng, text, "y")) == {"b": Block("other", None)}
    text = sequential(1).replace(
        "l0_down = MatMul(l0_j, l0_Wd)",
        "l0_third = MatMul(l0n2, l0c_Wu) l0_sum = Add(l0_j, l0_third)"
        " l0_down = MatMul(l0_sum, l0_Wd)",
    )
    roles = {name: block.role for name, block in blocks_of(blocks_model(rng, text, "y")).items()}
    assert {roles[f"l0_{name}"] for name in ("gate", "up", "third", "down")} == {"other"}
    text = sequential(1, mlp=fused_gated).replace(
        "l0_down = MatMul(l0_j, l0_Wd)",
        "l0_most = ReduceMax<keepdims = 1>(x, last) l0_sum = Add(l0_j, l0_most)"
        " l0_down = MatMul(l0_sum, l0_Wd)",
    )
    roles = {name: block.role for name, block in blocks_of(blocks_model(rng, text, "y")).items()}
    assert {roles[f"l0_{name}"] for name in ("gateup", "down")} == {"other"}


def test_values_that_feed_an_mlp_too(rng):
    """What attention reads is v, whoever else reads it."""
    text = attend("x", "l0") + " l0_y = Relu(l0_v) fc = MatMul(l0_y, l9_Wq) l0_sum = Add(l0_o, fc)"
    roles = {name: block.role for name, block in blocks_of(
        blocks_model(rng, text + add("x", "l0_sum", "y"), "y")).items()}  # fmt: skip
    assert roles["l0_v"] == "v" and roles["fc"] == "fc2"


def test_attention_whose_result_is_added_as_it_is(rng):
    """Without o, the result itself goes on to the next level."""
    text = sequential(3, mlp=plain, last="fc2")
    for at in ("l0", "l1", "l2"):
        text = text.replace(f" {at}_o = MatMul({at}_a, {at}_Wo)", "")
        text = text.replace(f"{at}_o)", f"{at}_a)")
    found = blocks_of(blocks_model(rng, text + HEAD))
    assert found == expected(3, "q", "k", "v", "fc1", "fc2") | {"head": Block("head", None)}


def test_a_head_that_adds_a_function_of_itself(rng):
    """A sum with itself is no residual stream."""
    text = sequential(1) + " head = MatMul(y, Wh) t = Tanh(head) logits = Add(head, t)"
    assert blocks_of(blocks_model(rng, text))["head"] == Block("head", None)


def test_keys_and_values_that_two_layers_share(rng):
    text = sequential(2).replace("l1_t = Transpose<perm = [0, 2, 1]>(l1_k)",
                                 "l1_t = Transpose<perm = [0, 2, 1]>(l0_k)")  # fmt: skip
    text = text.replace("MatMul(l1_p, l1_v)", "MatMul(l1_p, l0_v)")
    for part in "kv":
        text = text.replace(f" l1_{part} = MatMul(l1n1, l1_W{part})", "")
    found = blocks_of(blocks_model(rng, text + HEAD))
    wanted = expected(2, *QKVO, *GATED) | {"head": Block("head", None)}
    assert found == {name: wanted[name] for name in found} and len(found) == len(wanted) - 2


def test_a_router_is_in_its_layer(rng):
    """A linear that is none of the roles is where its neighbours are."""
    text = sequential(2).replace(
        " l1_down = MatMul(l1_j, l1_Wd)",
        " l1_router = MatMul(l1n2, l1_Wr) l1_rp = Softmax(l1_router)"
        " l1_rs = ReduceMax<keepdims = 1>(l1_rp, last) l1_down = MatMul(l1_j, l1_Wd)"
        " l1_down_ = Mul(l1_down, l1_rs)",
    )
    text = text.replace("l1x2 = Add(l1x1, l1_down)", "l1x2 = Add(l1x1, l1_down_)")
    found = blocks_of(blocks_model(rng, text + HEAD))
    assert found.pop("l1_router") == Block("other", 1)
    assert found == expected(2, *QKVO, *GATED) | {"head": Block("head", None)}


def test_gates_on_the_result_of_attention(rng):
    """A product with a sigmoid of another linear: still o, not the down of a gated MLP."""
    text = sequential(2).replace(
        "l1_o = MatMul(l1_a, l1_Wo)",
        "l1_og = MatMul(l1n1, l1g_Wq) l1_os = Sigmoid(l1_og) l1_ag = Mul(l1_a, l1_os)"
        " l1_o = MatMul(l1_ag, l1_Wo)",
    )
    found = blocks_of(blocks_model(rng, text + HEAD))
    assert found.pop("l1_og") == Block("other", 1)
    assert found == expected(2, *QKVO, *GATED) | {"head": Block("head", None)}


def test_one_linear_that_is_read_as_keys_and_queries(rng):
    """Names break this tie, and nothing else."""
    text = sequential(1).replace("l0_t = Transpose<perm = [0, 2, 1]>(l0_k)",
                                 "l0_t = Transpose<perm = [0, 2, 1]>(l0_q)")  # fmt: skip
    text = text.replace(" l0_k = MatMul(l0n1, l0_Wk)", "") + HEAD
    model = blocks_model(rng, text)
    assert blocks_of(model)["l0_q"].role == "qk"
    next(node for node in model.graph if node.name == "l0_q").name = "/layers.0/attn/key/MatMul"
    assert blocks_of(model)["l0_q"].role == "k"
    next(n for n in model.graph if n.name.startswith("/l")).name = "/layers.0/query_key/MatMul"
    assert blocks_of(model)["l0_q"].role == "qk"


def test_a_product_of_two_linears_without_an_activation(rng):
    text = sequential(1).replace("l0_i = Sigmoid(l0_gate) l0_c = Mul(l0_gate, l0_i)",
                                 "l0_c = Identity(l0_gate)") + HEAD  # fmt: skip
    model = blocks_model(rng, text)
    roles = {name: block.role for name, block in blocks_of(model).items()}
    assert {roles["l0_gate"], roles["l0_up"]} == {"gate", "up"} and roles["l0_down"] == "down"
    for names in (("l0_up", "l0_gate"), ("l0_gate", "l0_up")):
        for name, called in zip(names, ("gate", "up"), strict=True):
            node = next(node for node in model.graph if node.outputs[0].name == name)
            node.name = f"/layers.0/mlp/{called}_proj/MatMul"
        roles = {name: block.role for name, block in blocks_of(model).items()}
        assert (roles[names[0]], roles[names[1]]) == ("gate", "up")


@pytest.mark.parametrize("name", attention.FOLDABLE)
def test_attention_in_every_variant(rng, name):
    text = attention.FOLDABLE[name]
    found = {name: block.role for name, block in blocks_of(
        attention.attention_model(rng, text)).items()}  # fmt: skip
    assert found.pop("o") == "o"
    packed = "packed" in name
    if "q = MatMul(x, Wv)" in text:
        wanted = {"q": "q", "k": "k", "v": "v"}
    elif name == "Attention of heads":
        wanted = {"v": "v", "k4": "k"}
    else:
        wanted = dict.fromkeys(found, "qkv" if packed else "v")
    assert found and found == wanted


@pytest.mark.parametrize("name", gated.FOLDABLE)
def test_gated_mlps_in_every_variant(rng, name):
    text = gated.FOLDABLE[name]
    roles = [block.role for block in blocks_of(gated.gated_model(rng, text)).values()]
    if "relu" in name or name == "a gate per token":
        assert roles == ["other", "head"]  # nothing is added: a chain, not an MLP of a layer
    elif name == "two readers":
        assert roles == ["gate", "up", "down", "down"]
    else:
        assert roles == ["gate", "up", "down"]


def test_a_graph_of_plain_products(rng):
    text = "g (float[2, 8] x) => (float[2, 4] y) { a = MatMul(x, A) b = Relu(a) y = MatMul(b, B) }"
    model = build(text, {"A": weight(rng, 8, 6), "B": weight(rng, 6, 4)})
    assert blocks_of(model) == {"a": Block("other", None), "y": Block("head", None)}
    assert find_blocks(()) == {}
