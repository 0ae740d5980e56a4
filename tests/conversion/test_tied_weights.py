"""A weight that several linears have is stored once, whatever it is behind, in every target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.saved_models import saved
from support.tiny_graphs import build

from fptq_onnx.conversion.pipeline import Conversion, convert
from fptq_onnx.runtime import native_library as runtime
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import Plan

D, H, LAYERS = 128, 256, 4
TARGETS = ("custom", "matmulnbits", "qdq")
# How a layer {i} gets its weights u [D, H] and d [H, D].
LAYOUTS = {
    "one initializer": ("u{i} = Identity(U)", "d{i} = Identity(V)"),
    "a Transpose each": ("u{i} = Transpose<perm = [1, 0]>(UT)", "d{i} = Transpose(VT)"),
    "a Cast each": ("u{i} = Cast<to = 1>(U16)", "d{i} = Cast<to = 1>(V16)"),
    "a chain each": (
        "h{i} = Cast<to = 1>(UT16) u{i} = Transpose<perm = [1, 0]>(h{i})",
        "t{i} = Identity(VT) d{i} = Transpose(t{i})"),
    "copies": ("u{i} = Identity(U_{i})", "d{i} = Identity(V_{i})"),
    "stored twice": (
        "u{i} = Identity(U)", "d{i} = Identity(V)", "u{i} = Transpose(UT)", "d{i} = Transpose(VT)"),
}  # fmt: skip


def layers_model(rng: np.random.Generator, layout: str, *, gemm: bool = False) -> ir.Model:
    """x [A, D] -> y [A, D]: pre-norm MLPs with residuals, all with the same weights."""
    weights: dict[str, np.ndarray] = {
        "g": np.linspace(0.2, 4, D, dtype=np.float32),
        "bu": rng.standard_normal(H).astype("f4") / 8,
    }  # fmt: skip
    u = (rng.standard_normal((D, H)) / 8).astype(np.float16).astype(np.float32)
    v = (rng.standard_normal((H, D)) / 16).astype(np.float16).astype(np.float32)
    all_weights = {
        "U": u, "V": v, "UT": np.ascontiguousarray(u.T), "VT": np.ascontiguousarray(v.T),
        "U16": u.astype("f2"), "V16": v.astype("f2"), "UT16": u.T.astype("f2"),
        **{f"U_{i}": u.copy() for i in range(LAYERS)},
        **{f"V_{i}": v.copy() for i in range(LAYERS)},
    }  # fmt: skip
    text, before = "", "x"
    for i in range(LAYERS):
        layouts = LAYOUTS[layout]
        up, down = (layouts[2:] or layouts[:2]) if i % 2 else layouts[:2]
        out = "y" if i == LAYERS - 1 else f"x{i}"
        product = f"p{i} = MatMul(n{i}, u{i}) b{i} = Add(p{i}, bu)"
        if gemm and i % 2:
            product = f"b{i} = Gemm<transB = 1>(n{i}, UT, bu)"
            up = ""
        text += (
            f" n{i} = LayerNormalization({before}, g) {up.format(i=i)} {product}"
            f" r{i} = Relu(b{i}) {down.format(i=i)} q{i} = MatMul(r{i}, d{i})"
            f" {out} = Add({before}, q{i})"
        )
        before = out
    weights |= {
        name: w for name, w in all_weights.items() if f"({name})" in text or f" {name}," in text
    }
    return build(f"g_ (float[A, {D}] x) => (float[A, {D}] y) {{ {text} }}", weights, opset=21,
                 ir_version=10)  # fmt: skip


def samples(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"x": rng.standard_normal((64, D)).astype(np.float32)} for _ in range(4)]


def converted(
    rng: np.random.Generator, folder: Path, model: ir.Model, config: Config | None = None,
    **more: object,
) -> Conversion:  # fmt: skip
    file = saved(folder / "model", model)
    return convert(
        file, folder / "out", samples=samples(rng), config=config or Config(), targets=TARGETS,
        overwrite=True, **more,
    )  # type: ignore[arg-type]  # fmt: skip


def output(file: Path, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime.register(options)
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


def code_bytes(folder: Path) -> int:
    """Bytes of all tensors in a written model, as the file names them: each initializer once."""
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    found = set()
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        found.add((entries.get("offset", tensor.name), int(entries.get("length", 0))))
    return sum(length for _, length in found)


# 4 bits, and a scale of 16 bits (in MatMulNBits and DequantizeLinear of 32) for 128 channels.
ONCE = 2 * D * H * (4 + 16 / 128) / 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_stored_once(rng: np.random.Generator, tmp_path: Path, layout: str) -> None:
    model = layers_model(rng, layout)
    done = converted(rng, tmp_path, model)
    x = rng.standard_normal((50, D)).astype(np.float32)
    before = output(tmp_path / "model" / "model.onnx", x)
    before -= x  # what the layers add
    for target, folder in done.folders.items():
        report = done.reports[target]
        # The gain and the bias are 1.5 kB.
        assert ONCE <= code_bytes(folder) < 1.1 * ONCE + 2048, target
        # Alignment to pages and the nodes' text; one float copy would be 262 kB.
        assert report.bytes_after < 70_000, target
        assert 4 < report.bits_per_weight < 4.3, target
        after = output(folder / "model.onnx", x) - x
        # 4-bit weights in groups of 64 and 128, four layers deep: measured 0.09 to 0.12.
        assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before), target
        assert any("8 linears have 2 weights in common" in note for note in report.notes)
    assert all(entry.equalization == "none" for entry in done.plan.linears)


def test_gemm_and_matmul_share_a_weight(rng: np.random.Generator, tmp_path: Path) -> None:
    done = converted(rng, tmp_path, layers_model(rng, "stored twice", gemm=True))
    x = rng.standard_normal((50, D)).astype(np.float32)
    before = output(tmp_path / "model" / "model.onnx", x) - x
    for target, folder in done.folders.items():
        assert code_bytes(folder) < 1.1 * ONCE + 2048, target
        after = output(folder / "model.onnx", x) - x
        assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before), target


@pytest.mark.parametrize("config", [
    PAPER, Config(weight_method="mse"), Config(weight_method="rtn"),
    Config(activation_scheme="weight_only"), Config(symmetric=False),
])  # fmt: skip
def test_other_recipes(rng: np.random.Generator, tmp_path: Path, config: Config) -> None:
    targets = TARGETS if config.activation_scheme != "weight_only" else ("matmulnbits",)
    file = saved(tmp_path / "model", layers_model(rng, "copies"))
    done = convert(file, tmp_path / "out", samples=samples(rng), config=config, targets=targets)
    for folder in done.folders.values():
        assert code_bytes(folder) < 1.15 * ONCE + 2048


def test_the_codes_serve_all_uses(rng: np.random.Generator, tmp_path: Path) -> None:
    """Fitted to the inputs of all layers they are better than rounded to nearest."""
    model = layers_model(rng, "one initializer")
    x = rng.standard_normal((200, D)).astype(np.float32)
    errors = {}
    for weights in ("gptq", "rtn"):
        done = converted(rng, tmp_path / weights, model, Config(weight_method=weights))
        before = output(tmp_path / weights / "model" / "model.onnx", x)
        after = output(done.folders["custom"] / "model.onnx", x)
        errors[weights] = np.linalg.norm(after - before)
    assert errors["gptq"] < 0.9 * errors["rtn"]  # measured 0.7


@pytest.mark.parametrize("layout", ["one initializer", "a Transpose each", "copies"])
@pytest.mark.parametrize("equalization", ["search", "lae"])
def test_equalize_only_keeps_them_together(
    rng: np.random.Generator, tmp_path: Path, layout: str, equalization: str
) -> None:
    file = saved(tmp_path / "model", layers_model(rng, layout), external=None)
    config = Config(quantize=False, equalization=equalization, v0=0.0)
    done = convert(file, tmp_path / "out", samples=samples(rng), config=config)
    (report,) = done.reports.values()
    once = 4 * 2 * D * H
    assert report.bytes_after < once + 16384  # pages, nodes and the options in the metadata
    x = rng.standard_normal((50, D)).astype(np.float32)
    np.testing.assert_allclose(
        output(tmp_path / "out" / "model.onnx", x), output(file, x), rtol=1e-4, atol=1e-4
    )


def test_one_use_in_float_is_counted(rng: np.random.Generator, tmp_path: Path) -> None:
    done = converted(rng, tmp_path, layers_model(rng, "one initializer"), Config(ignore=("^p0$",)))
    for target, report in done.reports.items():
        # U in float and in 4 bits, V in 4 bits; both have D * H weights.
        assert report.bits_per_weight == pytest.approx((32 + 4.2 + 4.2) / 2, abs=0.1), target
    assert code_bytes(done.folders["custom"]) > 4 * D * H


def test_a_plan_is_replayed(rng: np.random.Generator, tmp_path: Path) -> None:
    model = layers_model(rng, "one initializer")
    file, some = saved(tmp_path / "model", model), samples(rng)
    first = convert(file, tmp_path / "out", samples=some)
    plan = Plan.load(tmp_path / "out" / "plan.json")
    again = convert(file, tmp_path / "again", samples=some, plan=plan)
    assert again.plan.linears == first.plan.linears
    assert (tmp_path / "again" / "model.onnx.data").read_bytes() == (
        tmp_path / "out" / "model.onnx.data"
    ).read_bytes()


def cross_model(rng: np.random.Generator, *, tied: bool = True) -> ir.Model:
    """q, k and v of one input in one layer, k and v of another input in the next: K and V tied."""
    names = "q0 k0 v0 k1 v1".split()
    of = {name: name.upper() if not tied else name[0].upper() for name in names}
    weights = {name: (rng.standard_normal((D, D)) / 8).astype("f4") for name in set(of.values())}
    weights["g"] = np.ones(D, np.float32)
    text = "n = LayerNormalization(x, g) m = LayerNormalization(z, g)" + "".join(
        f" {name} = MatMul({'n' if name[1] == '0' else 'm'}, {of[name]})" for name in names
    )
    for i, q in enumerate(("q0", "o0")):
        text += (
            f" t{i} = Transpose<perm = [1, 0]>(k{i}) s{i} = MatMul({q}, t{i}) e{i} = Softmax(s{i})"
            f" o{i} = MatMul(e{i}, v{i})"
        )
    text += " y = Add(o1, x)"
    body = f"g_ (float[A, {D}] x, float[A, {D}] z) => (float[A, {D}] y) {{ {text} }}"
    return build(body, weights, opset=21, ir_version=10)


def test_fused_ops_do_not_store_a_part_again(rng: np.random.Generator, tmp_path: Path) -> None:
    file = saved(tmp_path / "model", cross_model(rng))
    some = [{name: rng.standard_normal((32, D)).astype(np.float32) for name in "xz"}
            for _ in range(4)]  # fmt: skip
    convert(file, tmp_path / "out", samples=some)
    proto = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    products = [node for node in proto.graph.node if node.op_type == "MatMulW4A8"]
    assert len({node.input[1] for node in products}) < len(products)
    # q, k and v once; again within an op of k and v it would be five matrices.
    assert code_bytes(tmp_path / "out") < 3.2 * D * D * (4 + 16 / 128) / 8 + 2048


def test_sizes_are_right(rng: np.random.Generator, tmp_path: Path) -> None:
    done = converted(rng, tmp_path, layers_model(rng, "copies"))
    for target, folder in done.folders.items():
        files = [folder / "model.onnx", folder / "model.onnx.data"]
        assert done.reports[target].bytes_after == sum(file.stat().st_size for file in files)
        assert done.reports[target].bytes_after < done.reports[target].bytes_before


def test_layers_of_their_own_are_folded_as_before(rng: np.random.Generator, tmp_path: Path) -> None:
    """Weights of one shape but other values are no copies, nor are two of zeros."""
    model = layers_model(rng, "copies")
    for i in range(LAYERS):
        for name in (f"U_{i}", f"V_{i}"):
            value = model.graph.initializers[name]
            assert value.const_value is not None
            array = value.const_value.numpy().copy()
            array[-1, -2] += i  # one element is enough
            value.const_value = ir.tensor(array, name=name)
    done = converted(rng, tmp_path, model)
    assert not done.scan.shared
    assert any(entry.fold_site for entry in done.plan.linears)
    assert not any("in common" in note for note in done.reports["custom"].notes)
