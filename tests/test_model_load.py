from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from saved_models import DATA_NAME, fingerprint, linear_model, redirect, saved
from tiny_graphs import build, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.model_load import LoadedModel, load_model, tensors_of


def refused(path: Path, match: str) -> None:
    """Loading fails with one clear sentence, and changes nothing."""
    folder = path if path.is_dir() else path.parent
    before = fingerprint(folder) if folder.is_dir() else {}
    with pytest.raises(FptqError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert (fingerprint(folder) if folder.is_dir() else {}) == before


def test_a_file_and_its_folder_are_the_same(tmp_path: Path) -> None:
    file = saved(tmp_path)
    for path in (file, tmp_path):
        loaded = load_model(path)
        assert isinstance(loaded, LoadedModel)
        assert (loaded.file, loaded.folder) == (file, tmp_path)
        assert loaded.data_files == (tmp_path / DATA_NAME,)
        assert loaded.bytes == file.stat().st_size + (tmp_path / DATA_NAME).stat().st_size


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path))
    expected = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("model.onnx", DATA_NAME)
    }
    assert loaded.sha256() == expected


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path))
    tensor = loaded.model.graph.initializers["W1"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None  # nothing is mapped before it is asked for


def test_a_folder_with_one_model_of_any_name(tmp_path: Path) -> None:
    saved(tmp_path).rename(tmp_path / "decoder.onnx")
    assert load_model(tmp_path).file.name == "decoder.onnx"


def test_no_such_path(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file or folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no .onnx file|holds no")


def test_several_models(tmp_path: Path) -> None:
    saved(tmp_path).rename(tmp_path / "a.onnx")
    saved(tmp_path).rename(tmp_path / "b.onnx")
    refused(tmp_path, r"2 \.onnx files and no model\.onnx: a\.onnx .*; give the path")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"\x00" * 100, os.urandom(4096), b"{}", b"\x08\x08", b"PK\x03\x04 zip"],
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tmp_path / "model.onnx", "not a readable ONNX model|not an ONNX model")


def test_a_model_cut_short(tmp_path: Path) -> None:
    file = saved(tmp_path, external=None)
    whole = file.read_bytes()
    for keep in (len(whole) // 3, len(whole) - 1):
        file.write_bytes(whole[:keep])
        refused(file, "not a readable ONNX model|not an ONNX model|truncated")


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    refused(tmp_path / "tokenizer.json", "not a readable ONNX model|not an ONNX model")


def test_missing_data(tmp_path: Path) -> None:
    file = saved(tmp_path)
    (tmp_path / DATA_NAME).unlink()
    refused(file, f"{DATA_NAME} is missing: copy it next to the model")


@pytest.mark.parametrize("missing", [1, 4096, 100_000])
def test_truncated_data(tmp_path: Path, missing: int) -> None:
    file = saved(tmp_path)
    data = tmp_path / DATA_NAME
    size = data.stat().st_size
    os.truncate(data, max(0, size - missing))
    refused(file, "is truncated: the weight 'W[12]' ends at byte")


def test_data_that_is_exactly_long_enough(tmp_path: Path) -> None:
    file = saved(tmp_path, external=1024)  # W1 alone
    os.truncate(tmp_path / DATA_NAME, 64 * 48 * 4)
    assert load_model(file).data_files == (tmp_path / DATA_NAME,)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "999999999"},
        {"offset": str(2**63 - 1)},
        {"length": "16"},
        {"offset": "-4096"},
        {"offset": "many"},
    ],
)
def test_offsets_that_make_no_sense(tmp_path: Path, entries: dict[str, str]) -> None:
    file = saved(tmp_path)
    redirect(file, "W1", **entries)
    refused(file, "is truncated|not a readable ONNX model|outside")


def test_data_outside_the_folder(tmp_path: Path) -> None:
    file = saved(tmp_path / "model")
    (tmp_path / DATA_NAME).write_bytes((tmp_path / "model" / DATA_NAME).read_bytes())
    redirect(file, "W1", location=f"../{DATA_NAME}")
    refused(file, "refused: the weight 'W1' points to external data outside")


def test_data_at_an_absolute_path(tmp_path: Path) -> None:
    file = saved(tmp_path)
    redirect(file, "W1", location=str(tmp_path / DATA_NAME))  # inside, but absolute
    refused(file, "refused: the weight 'W1' points to external data outside")


def test_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    file = saved(tmp_path / "model")
    (tmp_path / "model" / DATA_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / "model" / DATA_NAME).symlink_to(tmp_path / "elsewhere")
    refused(file, "refused: .* outside the model's folder")


def test_data_in_a_subfolder_is_fine(tmp_path: Path) -> None:
    file = saved(tmp_path, external=1024)
    (tmp_path / "data").mkdir()
    (tmp_path / DATA_NAME).rename(tmp_path / "data" / DATA_NAME)
    redirect(file, "W1", location=f"data/{DATA_NAME}")
    assert list(load_model(file).sha256()) == ["model.onnx", f"data/{DATA_NAME}"]


@pytest.mark.parametrize("opset", [7, 16, 17, 28])
def test_oldest_and_newest_opset(tmp_path: Path, opset: int) -> None:
    model = linear_model()
    model.graph.opset_imports[""] = opset
    load_model(saved(tmp_path, model))


@pytest.mark.parametrize("opset", [6, 29, 1])
def test_opsets_out_of_range(tmp_path: Path, opset: int) -> None:
    model = linear_model()
    model.graph.opset_imports[""] = opset
    refused(saved(tmp_path, model), f"uses opset {opset}, supported are 7 to 28")


@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("q, u, v = DynamicQuantizeLinear(x) y = Cast<to = 1>(q)", "DynamicQuantizeLinear"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", "QuantizeLinear"),
        ("y = com.microsoft.MatMulNBits<K = 4, N = 4>(x, W, s)", "MatMulNBits"),
        ("y = fptq.MatMulW4A8(x, W, s)", "MatMulW4A8"),
        ("y = If(c) <then_branch = t () => (float i) { i = QGemm(x) }>", "QGemm"),
    ],
)
def test_already_quantized(tmp_path: Path, text: str, op: str) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1, "fptq" : 1]>\n'
        f"g (float[4] x, float s, uint8 z, bool c, float W) => (float y) {{ {text} }}"
    )
    file = saved(tmp_path, model)
    refused(file, rf"already quantized \(node .* is {op}\): give the float model")
    assert load_model(file, allow_quantized=True).file == file


def sparse_weight(name: str) -> onnx.SparseTensorProto:
    """One number that is not zero in a matrix [4, 4]."""
    values = onnx.numpy_helper.from_array(np.array([2], np.float32), name)
    places = onnx.numpy_helper.from_array(np.array([3], np.int64))
    return onnx.SparseTensorProto(values=values, indices=places, dims=[4, 4])


@pytest.mark.parametrize("where", ["initializer", "branch", "constant", "function"])
def test_sparse_weights(tmp_path: Path, where: str) -> None:
    """Valid ONNX, which onnx_ir drops in silence."""
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[2, 4] x, bool c) => (float[2, 4] y) {
          y = If(c) <then_branch = t () => (float[2, 4] i) { i = MatMul(x, W) },
                     else_branch = e () => (float[2, 4] j) { j = Neg(x) }> }
        <domain: "own", opset_import: ["" : 18]> f (a) => (b) { b = Neg(a) }"""
    proto = onnx.parser.parse_model(text)
    constant = onnx.NodeProto(op_type="Constant", output=["W"])
    attribute = constant.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse_weight(""))
    if where == "initializer":
        proto.graph.sparse_initializer.append(sparse_weight("W"))
    elif where == "branch":
        branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch")
        branch.sparse_initializer.append(sparse_weight("W"))
    elif where == "constant":
        proto.graph.node.insert(0, constant)
    else:
        proto.functions[0].node.append(constant)
    onnx.save(proto, tmp_path / "model.onnx")
    refused(tmp_path, "stores the weight 'W' sparsely, which is not supported")


def test_a_value_that_nothing_makes(tmp_path: Path) -> None:
    model = linear_model()
    file = saved(tmp_path, model, external=None)
    proto = onnx.load(file)
    del proto.graph.initializer[0]
    onnx.save(proto, file)
    refused(file, "not a valid ONNX model: node .* reads 'W1', which is no input, no weight")


def test_tensors_of_reaches_attributes_and_subgraphs() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (bool c) => (float[2] y) <float[2] a = {1, 2}> {
          k = Constant<value = float[2] {3, 4}>()
          y = If(c) <then_branch = t () => (float[2] i) <float[2] d = {5, 6}> { i = Add(d, a) },
                     else_branch = e () => (float[2] j) {
                        j = Constant<value = float[2] {7, 8}>() }> }"""
    )
    found = sorted(float(tensor.numpy()[0]) for tensor in tensors_of(model))
    assert found == [1, 3, 5, 7]


def test_loading_reads_half_precision_and_ir_versions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float16", "bfloat16"):
        model = build(
            f"g ({dtype}[A, 64] x) => ({dtype}[A, 48] y) {{ y = MatMul(x, W) }}",
            {"W": weight(rng, 64, 48, dtype=dtype)},
        )
        loaded = load_model(saved(tmp_path / dtype, model))
        tensor = loaded.model.graph.initializers["W"].const_value
        assert tensor.tobytes() == model.graph.initializers["W"].const_value.tobytes()


def test_text_with_a_nul_or_a_huge_length_is_no_crash(tmp_path: Path) -> None:
    """A length prefix far beyond the file, as a damaged download may have."""
    proto = onnx.load(saved(tmp_path, external=None)).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x07" + proto[:50])
    refused(tmp_path / "model.onnx", "not a readable ONNX model|not an ONNX model")


def test_a_branch_that_gives_an_outer_value(tmp_path: Path) -> None:
    """ONNX Runtime refuses it, too."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (bool c, float[2] x) => (float[2] y)'
        " { u = Relu(x) y = If(c) <then_branch = t () => (u) { }, else_branch = e () => (v)"
        " { v = Tanh(u) }> }"
    )
    onnx.save(proto, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", "the graph 't' gives 'u', which none of its nodes makes")
