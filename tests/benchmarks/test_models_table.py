"""The models table: what is counted, and that it sees what is wrong."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import MODEL

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 688, "vocab_size": 2048,
}  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import models_table

    return models_table


def test_the_embedded_model_is_covered_module_by_module(table):
    row = table.check_structure(MODEL, table.module_tree(CONFIG))
    assert (row.tree.count, row.covered, row.linears) == (43, 43, 31)
    assert (row.norm_folds, row.column_folds) == ((13, 13), (12, 12))
    assert not row.problems and not row.unfolded


@pytest.mark.parametrize(
    ("change", "saying", "covered"),
    [
        ({"num_hidden_layers": 5}, "model.layers.5.mlp.down_proj (down) is no linear of the", 36),
        ({"num_hidden_layers": 7}, "not found: [(6, 'down'), (6, 'gate'),", 43),
        ({"intermediate_size": 704}, "up_proj has 688 outputs, its module 704", 43),
        ({"head_dim": 16}, "qkv_proj has 512 outputs, its module 256", 43),
        ({"head_dim": 16}, "o_proj has 256 inputs, its module another number", 43),
        ({"model_type": "opt"}, "(gate) is no linear of the model", 25),
    ],
)
def test_a_graph_of_another_model_is_found_out(table, change, saying, covered):
    row = table.check_structure(MODEL, table.module_tree({**CONFIG, **change}))
    assert any(saying in problem for problem in row.problems), row.problems
    assert row.covered == covered


def test_a_linear_that_is_there_twice_or_not_at_all(table, monkeypatch):
    import export_checks

    find = export_checks.find_linears

    def twice(model):
        scan = find(model)
        return replace(scan, linears=(scan.linears[0], *scan.linears[:-1]))

    monkeypatch.setattr(export_checks, "find_linears", twice)
    row = table.check_structure(MODEL, table.module_tree(CONFIG))
    assert "(0, 'q') is there 2 times" in row.problems
    assert "not found: [(None, 'head')]" in row.problems and row.covered == 42


def test_configurations_from_the_command_line(table, tmp_path):
    assert table.read_config("qwen3:2") == {"model_type": "qwen3", "num_hidden_layers": 2}
    genai = table.read_config(str(MODEL / "genai_config.json"))
    tree = table.module_tree(genai)
    assert (tree.count, tree.layers) == (43, 6)
    assert tree.parts()[0, "k"] == (256, 128) and tree.parts()[0, "up"] == (256, None)
    assert table.exporter_of("llama-tied-genai-shared") == ("llama-tied", "genai-shared")
    (tmp_path / "new-dynamo").mkdir()
    with pytest.raises(SystemExit, match="give --config new-dynamo="):
        table.find_tree(tmp_path / "new-dynamo", {})
    assert table.find_tree(tmp_path / "new-dynamo", {"new": "opt:4"}).count == 25


def test_the_page_shows_ratios_and_what_falls_short(table):
    from fptq_onnx.evaluate import Comparison

    def figures(kl):
        return Comparison(1, 1, kl, 1, 0.5, 1, 1, 1, 1)

    row = table.check_structure(MODEL, table.module_tree(CONFIG))
    row = replace(row, name="llama-genai", ours=figures(0.03), stock=figures(0.02))
    options = argparse.Namespace(samples=1, length=2, windows=3)
    page = table.as_page([(row, "random")], options)
    assert "| llama | genai | 43 of 43 | 31 | 13 of 13 | 12 of 12 |" in page
    assert "| 0.0300 | 0.0200 | 1.50 |" in page and "Nothing falls short." in page
    row.problems.append("KL is 1.50 times that of MatMulNBits")
    page = table.as_page([(row, "random")], options)
    assert "* llama-genai: KL is 1.50 times" in page and "Nothing falls" not in page
