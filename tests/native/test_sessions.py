"""How the op behaves in sessions: symbols, forced kernels, concurrency, memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime import native_library as runtime


@pytest.mark.parametrize(
    "a_shape, y_shape",
    [
        (("batch", "sequence", 40), ["batch", "sequence", 70]),
        ((2, "sequence", 40), [2, "sequence", 70]),
        (("tokens", "hidden"), ["tokens", 70]),
        ((40,), [70]),
        ((3, 40), [3, 70]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_output_shape_keeps_symbols(op: Any, a_shape: Any, y_shape: Any, dtype: Any) -> None:
    session = op.open_session(op.make_node(40, 70, 16, a_shape=a_shape, dtype=dtype))
    (output,) = session.get_outputs()
    assert output.shape == y_shape
    assert output.type == ("tensor(float)" if dtype is np.float32 else "tensor(float16)")


def test_unnamed_dimensions_and_unknown_rank(op: Any, activations: Any) -> None:
    node = op.make_node(40, 70, 16, a_shape=(None, None, 40))
    x = activations((2, 3, 40))
    op.assert_exact(node, x)
    model = op.build(node)
    model.graph.inputs[0].shape = None
    (y,) = op.open_session(model).run(None, {"A": x})
    np.testing.assert_array_equal(y, op.expected(node, x)[0])


def test_unnamed_dimensions_get_names_of_their_own(op: Any) -> None:
    """Ranks must go on through the op, and dimensions of one name would be taken for equal."""
    session = op.open_session(op.make_node(40, 70, 16, a_shape=(None, None, 40)))
    *unnamed, last = session.get_outputs()[0].shape
    assert last == 70
    assert len(unnamed) == len(set(unnamed)) == 2
    assert all(str(name).startswith("fptq_unnamed_") for name in unnamed)


def test_float16_and_float32_in_one_model(op: Any, activations: Any) -> None:
    """Both types of the op are registered under one name; a graph may use both."""
    single = op.make_node(40, 70, 16)
    model = op.build(single)
    graph = model.graph
    b, scales = (v for v in graph.initializers.values() if v.name in ("B", "scales"))
    half = ir.Value(name="H", type=ir.TensorType(ir.DataType.FLOAT16))
    cast = ir.node("Cast", [graph.inputs[0]], attributes={"to": 10}, outputs=[half])
    y2 = ir.Value(name="Y2", type=ir.TensorType(ir.DataType.FLOAT16))
    second = ir.node(
        "MatMulW4A8", [half, b, scales], attributes=single.attributes, domain="fptq", outputs=[y2]
    )
    graph.extend([cast, second])
    graph.outputs.append(y2)
    x = activations((3, 40))
    y, z = op.open_session(model).run(None, {"A": x})
    np.testing.assert_array_equal(y, op.expected(single, x)[0])
    twin = op.make_node(40, 70, 16, dtype=np.float16)
    np.testing.assert_array_equal(z, op.expected(twin, x.astype(np.float16))[0])


def test_forced_kernel_that_does_not_exist(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", "avx1024")
    with pytest.raises(Exception, match="FPTQ_FORCE_KERNEL=avx1024 names no kernel") as raised:
        op.open_session(op.make_node(8, 8, 8))
    known, _, runnable = str(raised.value).partition("; this CPU can run: ")
    assert "the kernels are: " in known
    assert "scalar" in runnable
    if platform.machine() == "x86_64":
        assert "amx, avx512vnni, avxvnni, avx2, scalar" in known


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n" * 120, "n" * 120),
        ("n" * 127, "n" * 120 + "..."),
        ("n" * 5000, "n" * 120 + "..."),
        ("n" * 119 + "é" * 50, "n" * 119 + "..."),
    ],
)
def test_long_node_names_are_cut_in_messages(op: Any, name: str, shown: str) -> None:
    model = op.build(op.make_node(8, 8, 8).with_attribute(layout=2))
    model.graph[-1].name = name
    with pytest.raises(Exception, match="layout 2 is unknown") as raised:
        op.open_session(model)
    assert f"'{shown}'" in str(raised.value)


def test_empty_forced_kernel_is_no_choice(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", "")
    op.assert_exact(op.make_node(8, 8, 8), np.ones((1, 8), np.float32))


def test_concurrent_runs_of_one_session(op: Any, activations: Any) -> None:
    node = op.make_node(172, 400, 32, symmetric=False, bias=True)
    session = op.open_session(node, threads=2)
    wrong: list[int] = []

    def work(rows: int) -> None:
        x = activations((rows, 172))
        want = op.expected(node, x)[0]
        for _ in range(30):
            (got,) = session.run(None, {"A": x})
            if not np.array_equal(got, want):
                wrong.append(rows)

    workers = [threading.Thread(target=work, args=(rows,)) for rows in (1, 3, 20, 120)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_threads_without_spinning(op: Any, activations: Any) -> None:
    node = op.make_node(300, 700, 32)
    options = op.session_options(threads=7)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(ir.to_proto(op.build(node)).SerializeToString(), options)
    x = activations((100, 300))
    (got,) = session.run(None, {"A": x})
    np.testing.assert_array_equal(got, op.expected(node, x)[0])


def test_no_memory_arena(op: Any, activations: Any) -> None:
    node = op.make_node(300, 100, 32)
    options = op.session_options()
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(ir.to_proto(op.build(node)).SerializeToString(), options)
    x = activations((20, 300))
    (got,) = session.run(None, {"A": x})
    np.testing.assert_array_equal(got, op.expected(node, x)[0])


# In its own process, so that other tests' memory does not blur the measurement.
MEASURE = """
import sys, numpy as np, onnxruntime as ort
from fptq_onnx.runtime import native_library as runtime
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime.register(options)
    return ort.InferenceSession(path, options)
small, large, k = sys.argv[1], sys.argv[2], int(sys.argv[3])
x = np.ones((1, 8), np.float32)
session(small).run(None, {"A": x})  # what any first session costs
x = np.ones((1, k), np.float32)
before = anonymous()
s = session(large)
for _ in range(3):
    s.run(None, {"A": x})
print(anonymous() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan needs memory itself")
def test_weights_are_used_where_they_are_mapped(op: Any, tmp_path: Path) -> None:
    ir.save(op.build(op.make_node(8, 8, 8)), tmp_path / "small.onnx")
    k = n = 8192
    node = op.make_node(8, 8, 8).with_attribute(K=k, N=[n], block_size=128)
    node = node.with_constant("B", np.ones((n // 64, k // 8, 256), np.uint8))
    node = node.with_constant("scales", np.ones((n // 64, k // 128, 64), np.float32))
    model = op.build(node)
    model.graph.inputs[0].shape = ir.Shape(("tokens", k))
    ir.save(model, tmp_path / "large.onnx", external_data="large.data")
    weights = (tmp_path / "large.data").stat().st_size
    assert weights > 32 << 20
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small.onnx", tmp_path / "large.onnx", str(k)],
        env={
            **os.environ,
            "FPTQ_ONNX_LIBRARY": str(runtime.library_path()),
            "FPTQ_HUGE_PAGES": "0",  # tests of commands that ran before may have asked for copies
        },
        cwd=Path(runtime.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    # One copy would be 100 %. The bound is the project's own: 3 % of the weights, here 1 MB.
    assert int(result.stdout) < 0.03 * weights, f"{result.stdout.strip()} of {weights} bytes"


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 63])
def test_external_data_at_any_offset(
    op: Any, activations: Any, each_kernel: str, tmp_path: Path, offset: int
) -> None:
    """Weights that start at an odd byte of the file."""
    node = op.make_node(172, 70, 32, symmetric=False, bias=True)
    model = op.build(node)
    data = bytearray(offset)
    for value in model.graph.initializers.values():
        raw = value.const_value.tobytes()
        value.const_value = ir.ExternalTensor(
            "w.data", len(data), len(raw), value.dtype, shape=value.shape, name=value.name,
            base_dir=tmp_path,
        )  # fmt: skip
        data += raw + bytes(1)
    (tmp_path / "w.data").write_bytes(data)
    (tmp_path / "m.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), op.session_options())
    x = activations((9, 172))
    (got,) = session.run(None, {"A": x})
    np.testing.assert_array_equal(got, op.expected(node, x)[0])


def test_library_path_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"")
    monkeypatch.setenv("FPTQ_ONNX_LIBRARY", str(library))
    assert runtime.library_path() == library
    with pytest.raises(FptqError, match="could not load"):
        runtime.register(ort.SessionOptions())
    monkeypatch.setenv("FPTQ_ONNX_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(FptqError, match="is not a file; correct or unset it"):
        runtime.library_path()


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FPTQ_ONNX_LIBRARY", raising=False)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(FptqError, match="is missing from this installation; build it"):
        runtime.library_path()
    # A checkout that hides an installation: the one that lies further on has the library.
    library = tmp_path / "fptq_onnx" / "lib" / runtime.LIBRARY_NAME
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    assert runtime.library_path() == library.resolve()


def test_registering_twice(op: Any, activations: Any) -> None:
    node = op.make_node(40, 70, 16)
    options = op.session_options()
    runtime.register(options)
    session = ort.InferenceSession(ir.to_proto(op.build(node)).SerializeToString(), options)
    x = activations((2, 40))
    np.testing.assert_array_equal(session.run(None, {"A": x})[0], op.expected(node, x)[0])


@pytest.mark.process
def test_importing_runtime_does_not_import_onnxruntime() -> None:
    code = "import sys, fptq_onnx.runtime.native_library; sys.exit('onnxruntime' in sys.modules)"
    root = Path(runtime.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
