"""A mixture of experts as optimum-onnx writes it: each expert gets the rows a router picks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from support.tiny_graphs import build, weight

K, M, N = 64, 96, 40  # hidden size, of the experts, outputs


def experts_model(rng: np.random.Generator, count: int = 3, *, dead: bool = False) -> ir.Model:
    """x [A, 64] -> y [A, 40]: norm, router, experts e0, e1, ... of two linears, residual, head.

    Args:
        rng: of the weights.
        count: of experts.
        dead: whether the last expert gets no row ever.
    """
    text = (
        f"g (float[A, {K}] x) => (float[A, {N}] y) {{"
        " n = LayerNormalization(x, gain) router = MatMul(n, Wr) raised = Add(router, br)"
        " top = ArgMax<axis = -1, keepdims = 0>(raised) out_ = Sub(x, x)"
    )
    bias = np.zeros(count, np.float32)
    bias[-1] = -1e6 if dead else 0
    weights = {
        "gain": np.linspace(0.2, 8, K, dtype=np.float32),
        "Wr": weight(rng, K, count), "br": bias, "Wh": weight(rng, K, N),
    }  # fmt: skip
    before = "out_"
    for e in range(count):
        text += (
            f" i{e} = Constant<value_int = {e}>() hit{e} = Equal(top, i{e})"
            f" at{e} = NonZero(hit{e}) to{e} = Transpose(at{e}) rows{e} = GatherND(n, to{e})"
            f" up{e} = MatMul(rows{e}, U{e}) act{e} = Relu(up{e}) down{e} = MatMul(act{e}, D{e})"
            f" out{e} = ScatterND({before}, to{e}, down{e})"
        )
        before = f"out{e}"
        weights |= {f"U{e}": weight(rng, K, M), f"D{e}": weight(rng, M, K)}
    return build(text + f" r = Add(x, {before}) y = MatMul(r, Wh) }}", weights)
