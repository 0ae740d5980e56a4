"""An encoder as torch wrote BERT at opset 11, and the same at 17: 2 layers, hidden size 64."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

H, HEADS, M, VOCAB, LAYERS = 64, 4, 128, 97, 2


def encoder(opset: int) -> onnx.ModelProto:
    """Input_ids and attention_mask [batch, sequence] -> last_hidden_state [.., .., 64].

    Args:
        opset: of what is written; before 13 axes are attributes and Softmax takes axis 3.
    """
    rng = np.random.default_rng(3)
    arrays = {
        "table": rng.standard_normal((VOCAB, H)),
        "places": rng.standard_normal((64, H)) * 0.1,
        "two": 2.0, "eps": 1e-12, "one_f": 1.0, "low": -10000.0, "root": (H / HEADS) ** 0.5,
        "sqrt2": 2**0.5, "half": 0.5,
    }  # fmt: skip
    whole = {"first": 0, "second": 1, "heads": [HEADS], "size": [H // HEADS], "hidden": [H],
             "ax0": [0], "ax1": [1], "ax2": [2], "stop": [1], "step": [1]}  # fmt: skip
    old = opset < 13

    def unsqueeze(out: str, x: str, axis: int) -> str:
        return f" {out} = Unsqueeze" + (f"<axes = [{axis}]>({x})" if old else f"({x}, ax{axis})")

    def layer_norm(at: str, x: str, out: str) -> str:
        arrays[f"{at}.weight"] = 1 + 0.1 * rng.standard_normal(H)
        arrays[f"{at}.bias"] = 0.1 * rng.standard_normal(H)
        mean = "ReduceMean<axes = [-1]>"
        return (
            f" {at}_m = {mean}({x}) {at}_d = Sub({x}, {at}_m) {at}_p = Pow({at}_d, two)"
            f" {at}_v = {mean}({at}_p) {at}_e = Add({at}_v, eps) {at}_s = Sqrt({at}_e)"
            f" {at}_n = Div({at}_d, {at}_s) {at}_g = Mul({at}_n, {at}.weight)"
            f" {out} = Add({at}_g, {at}.bias)"
        )

    def linear(at: str, x: str, k: int, n: int) -> str:
        arrays[f"{at}.weight"] = rng.standard_normal((k, n)) * k**-0.5
        arrays[f"{at}.bias"] = 0.1 * rng.standard_normal(n)
        return f" {at}_p = MatMul({x}, {at}.weight) {at} = Add({at}_p, {at}.bias)"

    def split_heads(at: str, out: str, perm: str) -> str:
        return (
            f" {at}_sh = Shape({at}) {at}_b = Gather<axis = 0>({at}_sh, first) {at}_t = Gather"
            f"<axis = 0>({at}_sh, second)" + unsqueeze(f"{at}_bu", f"{at}_b", 0)
            + unsqueeze(f"{at}_tu", f"{at}_t", 0)
            + f" {at}_to = Concat<axis = 0>({at}_bu, {at}_tu, heads, size)"
            f" {at}_r = Reshape({at}, {at}_to) {out} = Transpose<perm = [{perm}]>({at}_r)"
        )  # fmt: skip

    text = " ids_sh = Shape(input_ids) len = Gather<axis = 0>(ids_sh, second)"
    text += unsqueeze("len_u", "len", 0) + " pos = Slice(places, ax0, len_u, ax0, step)"
    text += unsqueeze("mask1", "attention_mask", 1) + unsqueeze("mask2", "mask1", 2)
    text += " mask_f = Cast<to = 1>(mask2) hidden_ = Sub(one_f, mask_f) mask = Mul(hidden_, low)"
    text += " words = Gather(table, input_ids) emb = Add(words, pos)"
    text += layer_norm("embeddings.norm", "emb", "x0")
    for i in range(LAYERS):
        x, at = f"x{i}", f"layer.{i}"
        for name in ("query", "key", "value"):
            text += linear(f"{at}.{name}", x, H, H)
            text += split_heads(
                f"{at}.{name}", f"{at}.{name}_h", "0, 2, 3, 1" if name == "key" else "0, 2, 1, 3"
            )
        text += (
            f" {at}_s = MatMul({at}.query_h, {at}.key_h) {at}_z = Div({at}_s, root)"
            f" {at}_zm = Add({at}_z, mask) {at}_p = Softmax<axis = {3 if old else -1}>({at}_zm)"
            f" {at}_a = MatMul({at}_p, {at}.value_h)"
            f" {at}_at = Transpose<perm = [0, 2, 1, 3]>({at}_a) {at}_ash = Shape({at}_at)"
            f" {at}_ab = Gather<axis = 0>({at}_ash, first)"
            f" {at}_al = Gather<axis = 0>({at}_ash, second)"
        )
        text += unsqueeze(f"{at}_abu", f"{at}_ab", 0) + unsqueeze(f"{at}_alu", f"{at}_al", 0)
        text += f" {at}_to = Concat<axis = 0>({at}_abu, {at}_alu, hidden)"
        text += f" {at}_o = Reshape({at}_at, {at}_to)" + linear(f"{at}.dense", f"{at}_o", H, H)
        text += f" {at}_r = Add({at}.dense, {x})" + layer_norm(f"{at}.norm1", f"{at}_r", f"{at}_y")
        text += linear(f"{at}.up", f"{at}_y", H, M)
        text += (
            f" {at}_g1 = Div({at}.up, sqrt2) {at}_g2 = Erf({at}_g1) {at}_g3 = Add({at}_g2, one_f)"
            f" {at}_g4 = Mul({at}.up, {at}_g3) {at}_g = Mul({at}_g4, half)"
        )
        text += linear(f"{at}.down", f"{at}_g", M, H) + f" {at}_q = Add({at}.down, {at}_y)"
        last = i == LAYERS - 1
        text += layer_norm(f"{at}.norm2", f"{at}_q", "last_hidden_state" if last else f"x{i + 1}")
    proto = onnx.parser.parse_model(
        f'<ir_version: 6, opset_import: ["" : {opset}]> g_ (int64[batch, sequence] input_ids,'
        " int64[batch, sequence] attention_mask) =>"
        f" (float[batch, sequence, {H}] last_hidden_state) {{ {text.replace('.', '__')} }}"
    )
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(np.asarray(array, np.float32), name.replace(".", "__"))
        proto.graph.initializer.append(tensor)
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in whole.items():
        if name in used:
            tensor = numpy_helper.from_array(np.asarray(value, np.int64), name)
            proto.graph.initializer.append(tensor)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return proto
