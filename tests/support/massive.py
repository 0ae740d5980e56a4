"""Small models with massive activations, and what they compute in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import fptq_onnx

K, N = 64, 48
SIZE = 2000.0  # 10^4 times the rest and more
EPSILON = 1e-6

Reference = Callable[[NDArray[np.floating]], NDArray[np.float64]]


@dataclass(frozen=True)
class Massive:
    """A written model, samples of it, and its float64 reference.

    samples: feeds, the massive tokens among them.
    tests: a batch of two rows with massive tokens.
    others: which of its tokens are not massive.
    """

    path: Path
    samples: list[Mapping[str, NDArray[np.float32]]]
    tests: NDArray[np.float32]
    others: NDArray[np.bool_]
    reference: Reference

    def error(self, folder: Path) -> float:
        """Of a converted model, over tokens that are not massive, relative to the reference."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        fptq_onnx.register(options)
        session = ort.InferenceSession(str(folder / "model.onnx"), options)
        got = session.run(None, {"x": self.tests})[0].astype(np.float64)[self.others]
        want = self.reference(self.tests.astype(np.float64))[self.others]
        return float(np.sqrt(np.square(want - got).sum() / np.square(want).sum()))


def tokens(
    rng: np.random.Generator, rows: int, place: int, channels: tuple[int, ...], count: int = 128
) -> NDArray[np.float32]:
    """[rows, count, K] of 0.1, with a massive token at `place` of each row; -1 for none."""
    mixed = rng.standard_normal((K, K)) * 0.5 + np.eye(K)  # correlated, as GPTQ likes it
    x = (0.1 * rng.standard_normal((rows, count, K)) @ mixed / 4).astype(np.float32)
    if place >= 0:
        for number, channel in enumerate(channels):
            x[:, place, channel] = SIZE * (-0.6) ** number
    return x


def _save(folder: Path, body: str, constants: Mapping[str, NDArray[np.generic]], n: int) -> Path:
    """Write x [b, s, K] -> y [b, s, n]."""
    head = (
        f'<ir_version: 10, opset_import: ["": 21]> g (float[b, s, {K}] x) => (float[b, s, {n}] y)'
    )
    model = ir.from_onnx_text(f"{head} {{ {body} }}")
    values = {value.name: (node, index) for node in model.graph
              for index, value in enumerate(node.inputs) if value is not None}  # fmt: skip
    for name, array in constants.items():
        node, index = values[name]
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        model.graph.register_initializer(value)
        node.replace_input_with(index, value)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"n{number}"
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _built(
    path: Path,
    rng: np.random.Generator,
    reference: Reference,
    place: int,
    channels: tuple[int, ...],
    *,
    one_sample: bool,
    change: Callable[[NDArray[np.float32]], None] = lambda x: None,
) -> Massive:
    samples = [tokens(rng, 1, -1 if one_sample and i else place, channels) for i in range(4)]
    tests = tokens(rng, 2, place, channels)
    for x in (*samples, tests):
        change(x)
    others = np.ones(tests.shape[:2], bool)
    others[:, place] = False
    return Massive(path, [{"x": x} for x in samples], tests, others, reference)


def one_linear(
    rng: np.random.Generator,
    folder: Path,
    *,
    place: int = 0,
    channels: tuple[int, ...] = (7, 20),
    bias: bool = False,
    one_sample: bool = False,
) -> Massive:
    """MatMul on the input itself, as of a down projection: nothing to fold into."""
    w = (rng.standard_normal((K, N)) / 8).astype(np.float32)
    b = (0.1 * rng.standard_normal(N)).astype(np.float32)
    body = "p = MatMul(x, w) y = Add(p, b)" if bias else "y = MatMul(x, w)"
    path = _save(folder, body, {"w": w, "b": b} if bias else {"w": w}, N)
    return _built(
        path, rng, lambda x: np.asarray(x @ w.astype("f8") + bias * b, np.float64), place, channels,
        one_sample=one_sample,
    )  # fmt: skip


def normed(rng: np.random.Generator, folder: Path) -> Massive:
    """A norm and a linear, as at a layer's input where the residual stream has a massive token.

    Behind the norm the token is some 80 and the rest 0.05: between the paper's thresholds.
    """
    gain = np.full(K, 0.04, np.float32)
    gain[7] = 10
    w = (rng.standard_normal((K, K)) / 8).astype(np.float32)
    body = """
        q = Mul(x, x)  m = ReduceMean(q, axis)  v = Add(m, e)  r = Sqrt(v)  d = Div(x, r)
        n = Mul(d, gain)  y = MatMul(n, w)
    """
    small = np.full(1, EPSILON, np.float32)
    path = _save(folder, body, {"gain": gain, "w": w, "e": small, "axis": np.array([-1])}, K)

    def reference(x: NDArray[np.floating]) -> NDArray[np.float64]:
        n = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + EPSILON) * gain
        return np.asarray(n @ w.astype(np.float64), np.float64)

    def quiet(x: NDArray[np.float32]) -> None:
        """The massive token's channel is next to nothing in the others."""
        ordinary = np.abs(x[..., 7]) < 1
        x[..., 7][ordinary] *= 1e-3

    return _built(path, rng, reference, 0, (7,), one_sample=False, change=quiet)


def gated(rng: np.random.Generator, folder: Path) -> Massive:
    """down(up(x) * gate(x)): the product makes the massive token; up's columns can take a fold."""
    up, gate = ((rng.standard_normal((K, 96)) / 8).astype(np.float32) for _ in range(2))
    down = (rng.standard_normal((96, N)) / 8).astype(np.float32)
    up[3, 5] = gate[3, 5] = 3.0  # channel 3 of the input, times 40, makes channel 5 massive
    body = "u = MatMul(x, up) g = MatMul(x, gate) h = Mul(u, g) y = MatMul(h, down)"
    path = _save(folder, body, {"up": up, "gate": gate, "down": down}, N)

    def reference(x: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray((x @ up.astype("f8")) * (x @ gate.astype("f8")) @ down, np.float64)

    def smaller(x: NDArray[np.float32]) -> None:
        np.clip(x, -20, 20, out=x)

    return _built(path, rng, reference, 64, (3,), one_sample=False, change=smaller)
