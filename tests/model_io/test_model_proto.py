"""Which models are run as they are in their files, and which are loaded first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.command_line import MODEL
from support.saved_models import DATA_NAME, linear_model, redirect, saved

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.model_proto import plain_proto
from fptq_onnx.model_io.tensor_spec import specs_of_protos


def test_the_demo_model_is_plain_and_speaks_as_the_graph_does() -> None:
    proto, loaded = plain_proto(MODEL / "model.onnx"), load_model(MODEL)
    assert proto is not None
    assert specs_of_protos(proto.graph.input) == loaded.inputs
    assert specs_of_protos(proto.graph.output) == loaded.outputs


@pytest.mark.parametrize("opset", [17, 28])
@pytest.mark.parametrize("external", [None, 256])
def test_plain_models(tmp_path: Path, opset: int, external: int | None) -> None:
    file = saved(tmp_path, linear_model(opset), external=external)
    proto = plain_proto(file)
    assert proto == onnx.load(file, load_external_data=False)


def test_specs_of_odd_values() -> None:
    graph = onnx.parser.parse_graph(
        "g (int4[n, 2] a, bfloat16 b, double[] c, string[3] d, uint8[?] f) => () {}"
    )
    graph.input.add(name="e")  # of no type
    specs = [(spec.name, spec.dtype, spec.shape) for spec in specs_of_protos(graph.input)]
    assert specs == [
        ("a", "int4", ("n", 2)), ("b", "bfloat16", ()), ("c", "float64", None),
        ("d", "str", (3,)), ("f", "uint8", (None,)), ("e", "", None),
    ]  # fmt: skip


def as_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(onnx.ValueInfoProto(name="b"))


def older(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 16


def newer(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 29


def other_name(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].domain = "ai.onnx"


def unmade_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nowhere"


def unmade_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nowhere"


def empty(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]
    del proto.graph.output[:]


def sequence(proto: onnx.ModelProto) -> None:
    proto.graph.input.add(name="s").type.sequence_type.elem_type.tensor_type.elem_type = 1


def function(proto: onnx.ModelProto) -> None:
    proto.functions.add(name="f", domain="d")


def branch(proto: onnx.ModelProto) -> None:
    attribute = proto.graph.node[0].attribute.add(name="then_branch")
    attribute.type = onnx.AttributeProto.GRAPH


def sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add()


CHANGES = [
    as_input, older, newer, other_name, unmade_input, unmade_output, empty, sequence, function,
    branch, sparse,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_to_be_changed_or_refused(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    file = saved(tmp_path)
    proto = onnx.load(file, load_external_data=False)
    assert plain_proto(file) is not None
    change(proto)
    onnx.save(proto, file)
    assert plain_proto(file) is None


@pytest.mark.parametrize("entries", [
    {"location": "missing.bin"}, {"location": ""}, {"location": ".\\weights.bin"},
    {"location": "../weights.bin"}, {"offset": "-4096"}, {"offset": "9999999"}, {"length": "8"},
    {"offset": "some"},
])  # fmt: skip
def test_data_that_is_not_where_it_should_be(tmp_path: Path, entries: dict[str, str]) -> None:
    file = saved(tmp_path / "model")
    shutil.copy(tmp_path / "model" / DATA_NAME, tmp_path)
    redirect(file, "W1", **entries)
    assert plain_proto(file) is None


def test_an_absolute_location(tmp_path: Path) -> None:
    file = saved(tmp_path)
    redirect(file, "W1", location=str(tmp_path / DATA_NAME))
    assert plain_proto(file) is None


def test_data_cut_short_by_a_byte(tmp_path: Path) -> None:
    file = saved(tmp_path)
    data = tmp_path / DATA_NAME
    end = max(
        tensor.offset + tensor.nbytes
        for value in load_model(file).model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    )
    os.truncate(data, end)
    assert plain_proto(file) is not None
    os.truncate(data, end - 1)
    assert plain_proto(file) is None
    with pytest.raises(FptqError, match="truncated"):
        load_model(file)


def test_four_bits_take_half_a_byte(tmp_path: Path) -> None:
    file = saved(tmp_path)
    proto = onnx.load(file, load_external_data=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "W1")
    weight.data_type = TensorProto.INT4
    entry = next(entry for entry in weight.external_data if entry.key == "length")
    entry.value = str(64 * 48 // 2)
    onnx.save(proto, file)
    assert plain_proto(file) is not None
    entry.value = str(64 * 48 // 2 - 1)
    onnx.save(proto, file)
    assert plain_proto(file) is None


def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    file = saved(tmp_path / "model")
    data = file.parent / DATA_NAME
    shutil.move(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert plain_proto(file) is None


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x08", b"version https://git-lfs.github.com/spec/v1"]
)
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert plain_proto(tmp_path / "model.onnx") is None
    assert plain_proto(tmp_path / "none.onnx") is None
