from __future__ import annotations

import errno
import io
import itertools
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.saved_models import DATA_NAME, fingerprint, linear_model, saved
from support.tiny_graphs import build, run, weight

from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.save import DATA_FILE, MODEL_FILE, save_model


def contents(model: ir.Model) -> dict[str | None, tuple[object, bytes]]:
    return {
        name: (tuple(value.const_value.shape.numpy()), value.const_value.tobytes())
        for name, value in model.graph.initializers.items()
    }


@pytest.mark.parametrize("external", [None, 0, 256, 1024])
def test_every_tensor_survives(tmp_path: Path, external: int | None) -> None:
    """Whichever of them lay outside before, and however small."""
    original = linear_model()
    loaded = load_model(saved(tmp_path / "in", original, external=external))
    (tmp_path / "out").mkdir()
    save_model(loaded.model, tmp_path / "out")
    # The result must stand alone.
    (tmp_path / "in").rename(tmp_path / "gone")
    again = load_model(tmp_path / "out")
    assert contents(again.model) == contents(original)
    assert again.data_files == (tmp_path / "out" / DATA_FILE,)
    onnx.checker.check_model(str(tmp_path / "out" / MODEL_FILE), full_check=True)


def test_large_tensors_are_copied_from_where_they_lie(tmp_path: Path) -> None:
    """Several in one data file, none but the first at its beginning."""
    rng = np.random.default_rng(0)
    weights = {name: weight(rng, 40, 40) for name in "ABC"}
    model = build("g (float x) => (float y) { p = Sum(A, B, C) y = Add(p, x) }", weights)
    loaded = load_model(saved(tmp_path / "in", model)).model
    assert len({value.const_value.offset for value in loaded.graph.initializers.values()}) == 3
    (tmp_path / "out").mkdir()
    save_model(loaded, tmp_path / "out")
    again = load_model(tmp_path / "out").model.graph.initializers
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name].const_value.numpy(), array)


def test_the_written_model_runs(tmp_path: Path) -> None:
    model = linear_model()
    x = weight(np.random.default_rng(1), 5, 64)
    expected = run(model, {"x": x})["z"]
    save_model(model, tmp_path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        str(tmp_path / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(["z"], {"x": x})[0], expected)


def test_offsets_are_aligned(tmp_path: Path) -> None:
    """64 bytes at least, a page for tensors of a page and more; no two tensors overlap."""
    rng = np.random.default_rng(0)
    shapes = {"A": (300, 1), "B": (1023,), "C": (1024,), "D": (257, 5), "E": (700, 3), "F": (301,)}
    names = " ".join(f"y{i} = Identity({name})" for i, name in enumerate(shapes))
    outputs = ", ".join(f"float y{i}" for i in range(len(shapes)))
    model = build(
        f"g (float x) => ({outputs}) {{ {names} }}",
        {name: weight(rng, *shape) for name, shape in shapes.items()},
    )
    before = contents(model)
    save_model(model, tmp_path)
    proto = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    spans = []
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == DATA_FILE
        offset, length = int(entries["offset"]), int(entries["length"])
        assert offset % (4096 if length >= 4096 else 64) == 0, tensor.name
        assert length == int(np.prod(tensor.dims)) * 4
        spans.append((offset, offset + length))
    assert len(spans) == len(shapes)
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert contents(load_model(tmp_path).model) == before


def test_small_tensors_stay_in_the_model_file(tmp_path: Path) -> None:
    save_model(linear_model(), tmp_path)
    proto = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    inside = {item.name for item in proto.graph.initializer if not item.external_data}
    assert inside == {"W2", "b"}


def test_no_data_file_without_large_tensors(tmp_path: Path) -> None:
    model = build("g (float[2] x) => (float[2] y) { y = Add(x, b) }", {"b": np.ones(2, np.float32)})
    save_model(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


@pytest.mark.parametrize("dtype", ["int4", "uint4", "bfloat16", "float16", "int8", "bool"])
@pytest.mark.parametrize("count", [9000, 8999])
def test_every_element_type(tmp_path: Path, dtype: str, count: int) -> None:
    """An odd number of 4-bit values leaves half a byte at the end."""
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    values = (np.arange(count) % 7).astype(kind)
    model = build("g (float x) => (float y) { y = Identity(x) }", ir_version=10, opset=21)
    value = ir.Value(name="T", const_value=ir.Tensor(values, name="T"))
    value.shape, value.dtype = ir.Shape([count]), value.const_value.dtype
    model.graph.register_initializer(value)
    save_model(model, tmp_path)
    tensor = load_model(tmp_path).model.graph.initializers["T"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.nbytes == ((count + 1) // 2 if "int4" in dtype else values.nbytes)
    np.testing.assert_array_equal(tensor.numpy().astype(int), values.astype(int))


def test_lazy_tensors_are_made_once_each_and_not_kept(tmp_path: Path) -> None:
    made: list[str] = []
    model = build("g (float x) => (float y) { y = Identity(x) }")
    for name in "PQ":
        shape = ir.Shape([40, 50])

        def make(name: str = name) -> ir.Tensor:
            made.append(name)
            return ir.Tensor(np.full((40, 50), ord(name), np.float32), name=name)

        value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = ir.LazyTensor(make, ir.DataType.FLOAT, shape, name=name)
        model.graph.register_initializer(value)
    save_model(model, tmp_path)
    assert made == ["P", "Q"]
    assert all(
        isinstance(value.const_value, ir.ExternalTensor)
        for value in model.graph.initializers.values()
    )
    for name in "PQ":
        array = load_model(tmp_path).model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(array, np.full((40, 50), ord(name), np.float32))


def test_subgraph_weights_are_written_too(tmp_path: Path) -> None:
    model = build(
        "g (bool c, float[1000] x) => (float[1000] y) {"
        " y = If(c) <then_branch = t () => (float[1000] i) { i = Add(x, A) },"
        " else_branch = e () => (float[1000] j) { j = Neg(x) }> }",
    )
    then = model.graph.node(0).attributes["then_branch"].as_graph()
    value = ir.Value(name="A", const_value=ir.tensor(np.arange(1000, dtype=np.float32), name="A"))
    value.shape, value.dtype = ir.Shape([1000]), ir.DataType.FLOAT
    then.node(0).replace_input_with(1, value)
    then.register_initializer(value)
    save_model(model, tmp_path)
    again = load_model(tmp_path).model.graph.node(0).attributes["then_branch"].as_graph()
    tensor = again.initializers["A"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(1000, dtype=np.float32))


def test_the_input_is_not_touched(tmp_path: Path) -> None:
    file = saved(tmp_path / "in")
    before = fingerprint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    save_model(load_model(file).model, tmp_path / "out")
    assert fingerprint(tmp_path / "in") == before


def test_progress_sees_each_large_tensor(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def track(items, total):  # type: ignore[no-untyped-def]
        assert total == 1
        for item in items:
            seen.append(item.name)
            yield item

    save_model(linear_model(), tmp_path, track)
    assert seen == ["W1"]


def test_a_source_that_shrank_is_noticed(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path / "in", external=1024))
    os.truncate(tmp_path / "in" / DATA_NAME, 5000)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="W1: wrote"):
        save_model(loaded.model, tmp_path / "out")


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: FullDisk())
    with pytest.raises(OSError, match="No space left"):
        save_model(linear_model(), tmp_path)
