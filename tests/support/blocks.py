"""Transformer layers as ONNX text, put together as tests need them: hidden size 8, one head.

Nodes are called like l0_q, so that a test can read off what a linear is; no pattern of names fits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from support.tiny_graphs import build, weight

Part = Callable[[str, str], str]  # of a value's name and a prefix, the text of the nodes

H, M, VOCAB = 8, 12, 16


def norm(x: str, out: str) -> str:
    return f" {out} = LayerNormalization({x}, gain)"


def attention(x: str, at: str, source: str = "") -> str:
    """At_q, at_k, at_v and at_o; keys and values of another value for cross-attention."""
    source = source or x
    return (
        f" {at}_q = MatMul({x}, {at}_Wq) {at}_k = MatMul({source}, {at}_Wk)"
        f" {at}_v = MatMul({source}, {at}_Wv) {_core(at, f'{at}_q', f'{at}_k', f'{at}_v')}"
        f" {at}_o = MatMul({at}_a, {at}_Wo)"
    )


def fused_attention(x: str, at: str) -> str:
    """At_qkv and at_o, with a bias."""
    return (
        f" {at}_m = MatMul({x}, {at}_W3) {at}_qkv = Add({at}_m, {at}_b3)"
        f" {at}_q, {at}_k, {at}_v = Split<axis = 2, num_outputs = 3>({at}_qkv)"
        f" {_core(at, f'{at}_q', f'{at}_k', f'{at}_v')} {at}_o = MatMul({at}_a, {at}_Wo)"
    )


def _core(at: str, q: str, k: str, v: str) -> str:
    return (
        f" {at}_t = Transpose<perm = [0, 2, 1]>({k}) {at}_s = MatMul({q}, {at}_t)"
        f" {at}_z = Mul({at}_s, half) {at}_p = Softmax({at}_z) {at}_a = MatMul({at}_p, {v})"
    )


def gated(x: str, at: str) -> str:
    """At_gate, at_up and at_down."""
    return (
        f" {at}_up = MatMul({x}, {at}_Wu) {at}_gate = MatMul({x}, {at}_Wg)"
        f" {at}_i = Sigmoid({at}_gate) {at}_c = Mul({at}_gate, {at}_i)"
        f" {at}_j = Mul({at}_up, {at}_c) {at}_down = MatMul({at}_j, {at}_Wd)"
    )


def fused_gated(x: str, at: str) -> str:
    """At_gateup and at_down."""
    return (
        f" {at}_gateup = MatMul({x}, {at}_W2)"
        f" {at}_g, {at}_u = Split<axis = 2, num_outputs = 2>({at}_gateup)"
        f" {at}_i = Sigmoid({at}_g) {at}_c = Mul({at}_g, {at}_i) {at}_j = Mul({at}_u, {at}_c)"
        f" {at}_down = MatMul({at}_j, {at}_Wd)"
    )


def plain(x: str, at: str) -> str:
    """At_fc1 and at_fc2, a gelu by tanh between: sums and products of a value with itself."""
    return (
        f" {at}_fc1 = MatMul({x}, {at}_Wu) {at}_y = Mul({at}_fc1, {at}_fc1)"
        f" {at}_w = Mul({at}_y, {at}_fc1) {at}_r = Mul({at}_w, half) {at}_d = Add({at}_fc1, {at}_r)"
        f" {at}_n = Tanh({at}_d) {at}_e = Add({at}_n, half) {at}_j = Mul({at}_fc1, {at}_e)"
        f" {at}_fc2 = MatMul({at}_j, {at}_Wd)"
    )


def add(x: str, y: str, out: str) -> str:
    return f" {out} = Add({x}, {y})"


def sequential(layers: int, attend: Part = attention, mlp: Part = gated, last: str = "down") -> str:
    """Pre-norm layers from x to y, attention before the MLP."""
    text, x = "", "x"
    for i in range(layers):
        at = f"l{i}"
        text += norm(x, f"{at}n1") + attend(f"{at}n1", at) + add(x, f"{at}_o", f"{at}x1")
        text += norm(f"{at}x1", f"{at}n2") + mlp(f"{at}n2", at)
        x = f"{at}x2"
        text += add(f"{at}x1", f"{at}_{last}", x)
    return text + norm(x, "y")


def parallel(layers: int) -> str:
    """One norm feeds attention and MLP, both are added to the stream."""
    text, x = "", "x"
    for i in range(layers):
        at = f"l{i}"
        text += norm(x, f"{at}n") + plain(f"{at}n", at) + attention(f"{at}n", at)
        text += add(x, f"{at}_o", f"{at}x1") + add(f"{at}x1", f"{at}_fc2", f"{at}x2")
        x = f"{at}x2"
    return text + norm(x, "y")


HEAD = " head = MatMul(y, Wh) logits = Mul(head, half)"


def blocks_model(rng: np.random.Generator, text: str, output: str = "logits") -> ir.Model:
    """A model over x [2, 3, 8] (and, where the text has it, z [2, 5, 8])."""
    tokens = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    shapes = {
        "Wq": (H, H), "Wk": (H, H), "Wv": (H, H), "Wo": (H, H), "W3": (H, 3 * H), "b3": (3 * H,),
        "Wu": (H, M), "Wg": (H, M), "W2": (H, 2 * M), "Wd": (M, H), "Wh": (H, VOCAB),
        "Wr": (H, 3),
    }  # fmt: skip
    arrays = {
        token: weight(rng, *shapes[kind])
        for token in sorted(tokens)
        for kind in [token.rpartition("_")[2]]
        if kind in shapes
    }
    constants = {
        "gain": np.ones(H, np.float32), "half": np.array(0.5, np.float32), "zero": np.array(0),
        "last": np.array([-1]),
    }  # fmt: skip
    arrays |= {name: array for name, array in constants.items() if name in tokens}
    inputs = "float[2, 3, 8] x" + (", float[2, 5, 8] z" if "z" in tokens else "")
    outputs = ", ".join(f"float {name}" for name in output.split())
    fused = "com.microsoft" in text
    return build(f"g_ ({inputs}) => ({outputs}) {{ {text} }}", arrays, microsoft=fused)
