"""What is found out about a loaded model is found once, and again after the graph was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.command_line import MODEL
from support.tiny_graphs import build, weight

from fptq_onnx.errors import FptqError, NoDecoderError
from fptq_onnx.graph.graph_state import GraphState
from fptq_onnx.graph.linears import linears
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.model_io import load
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.runtime import decoder_io
from fptq_onnx.runtime.decoder_io import decoder_io_of


def two_linears(rng: np.random.Generator) -> ir.Model:
    text = "m (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, w)  y = MatMul(h, v) }"
    return build(text, {"w": weight(rng, 8, 8), "v": weight(rng, 8, 4)})


@pytest.fixture
def small(rng: np.random.Generator, tmp_path: Path) -> LoadedModel:
    ir.save(two_linears(rng), tmp_path / "model.onnx")
    return load_model(tmp_path)


def test_linears_are_found_once(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = small.linears
    assert [linear.k for linear in scan.linears] == [8, 8]

    def again(model: ir.Model) -> None:
        raise AssertionError("found again")

    monkeypatch.setattr(load, "find_linears", again)
    assert small.linears is scan


def test_linears_are_found_anew_after_normalizing(small: LoadedModel) -> None:
    """It names nodes, and plans speak of linears by these names."""
    for node in small.model.graph:
        node.name = ""
    before = small.linears
    normalize(small.model)
    assert [linear.name for linear in small.linears.linears] == [
        node.name for node in small.model.graph
    ]
    assert small.linears is not before and all(linear.name for linear in small.linears.linears)


def renamed(model: ir.Model) -> None:
    model.graph[0].name = "another"


def other_operator(model: ir.Model) -> None:
    model.graph[0].op_type = "Add"


def weight_replaced(model: ir.Model) -> None:
    linear = linears.find_linears(model).linears[0]
    replace_weight(linear, ir.tensor(np.zeros((8, 8), np.float32)))


def tensor_replaced(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((8, 8), np.float32))


def inserted(model: ir.Model) -> None:
    value = model.graph.inputs[0]
    node = ir.node("Identity", [value])
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].replace_input_with(0, node.outputs[0])


def removed(model: ir.Model) -> None:
    first, second = model.graph
    second.replace_input_with(0, model.graph.inputs[0])
    model.graph.remove(first, safe=True)


def attribute(model: ir.Model) -> None:
    model.graph[0].attributes.add(ir.AttrInt64("transB", 1))


def output_added(model: ir.Model) -> None:
    model.graph.outputs.append(model.graph[0].outputs[0])


def type_changed(model: ir.Model) -> None:
    model.graph.inputs[0].dtype = ir.DataType.FLOAT16


def shape_changed(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([3, 8])


CHANGES = [
    renamed, other_operator, weight_replaced, tensor_replaced, inserted, removed, attribute,
    output_added, type_changed, shape_changed,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_graph_is_seen(
    change: Callable[[ir.Model], None], small: LoadedModel
) -> None:
    before, scan = GraphState(small.model), small.linears
    assert GraphState(small.model) == before
    change(small.model)
    assert GraphState(small.model) != before
    assert small.linears is not scan


def test_a_change_in_a_branch_is_seen(tmp_path: Path) -> None:
    text = """m (bool c, float[2] x) => (float[2] y) {
        y = If(c) <then_branch = t () => (u) { u = Relu(x) }, else_branch = e () => (v)
        { v = Tanh(x) }>
    }"""
    model = build(text, {})
    before = GraphState(model)
    next(iter(node for node in model.graph.all_nodes() if node.op_type == "Relu")).op_type = "Abs"
    assert GraphState(model) != before


def test_inputs_are_those_of_now(small: LoadedModel) -> None:
    assert [spec.dtype for spec in small.inputs] == ["float32"]
    type_changed(small.model)
    assert [spec.dtype for spec in small.inputs] == ["float16"]
    output_added(small.model)
    assert len(small.outputs) == 2


def test_roles_are_found_once_for_each_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = load_model(MODEL), []
    find = decoder_io.find_io
    monkeypatch.setattr(decoder_io, "find_io", lambda *given: (asked.append(1), find(*given))[1])
    first = decoder_io_of(loaded)
    normalize(loaded.model)
    assert decoder_io_of(loaded) is first and len(asked) == 1
    past = next(value for value in loaded.model.graph.inputs if value.name == first.cache[0].past)
    past.dtype = ir.DataType.FLOAT16
    assert decoder_io_of(loaded).cache[0].dtype == "float16"
    assert first.cache[0].dtype == "float32" and len(asked) == 2


def test_what_is_no_decoder_is_refused_each_time(small: LoadedModel) -> None:
    for _ in range(2):
        with pytest.raises(NoDecoderError, match="no input named input_ids"):
            decoder_io_of(small)


def test_special_ids_are_read_once_for_each_tokenizer(
    small: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small.folder / "config.json").write_text(json.dumps({"bos_token_id": 7, "eos_token_id": 8}))
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert (small.special_ids.bos, small.special_ids.eos) == (7, (8,))
    assert small.special_ids_with(other).eos == (8, 9)

    def again(*folders: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(load, "read_special_ids", again)
    assert (small.special_ids.eos, small.special_ids_with(other).eos) == ((8,), (8, 9))


def test_a_damaged_file_is_told_each_time(small: LoadedModel) -> None:
    (small.folder / "config.json").write_text("[")
    for _ in range(2):
        with pytest.raises(FptqError, match=r"config\.json"):
            _ = small.special_ids
