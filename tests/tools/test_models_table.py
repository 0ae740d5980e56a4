"""The models table: what is counted, and that it sees what is wrong."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_line import MODEL

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 688, "vocab_size": 2048,
}  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
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


def test_the_page_shows_ratios_and_what_fails(table, tmp_path):
    from encoder_numbers import Numbers

    row = table.check_structure(MODEL, table.module_tree(CONFIG))
    row = replace(row, name="llama-genai", ours=Numbers(0.03, 0.5), stock=Numbers(0.02, 0.25))
    hidden = replace(row, name="minilm-optimum", ours=Numbers(0.01, None), problems=[])
    options = argparse.Namespace(samples=1, length=2, windows=3, exports=[tmp_path])
    page = table.as_page([(row, "random"), (hidden, "random")], options)
    assert "| llama | genai | 43 of 43 | 31 | 13 of 13 | 12 of 12 |" in page
    assert "| 0.0300 | 0.0200 | 1.50 | 0.500 | 0.250 |" in page and "All checks pass." in page
    assert "| 0.0100 | 0.0200 | 0.50 |  | 0.250 |" in page and "Not exported" not in page
    row.problems.append("KL is 1.50 times that of MatMulNBits")
    (tmp_path / "not-exported.json").write_text('{"gpt2-genai": "it is not known: try --x"}')
    page = table.as_page([(row, "random")], options)
    assert "* llama-genai: KL is 1.50 times" in page and "All checks pass" not in page
    assert "* gpt2-genai: it is not known\n" in page


@pytest.mark.parametrize(
    ("architecture", "modules"), [("BertModel", 12), ("BertForMaskedLM", 14), (None, 12)]
)
def test_modules_of_an_encoder(table, architecture, modules):
    config = {**CONFIG, "model_type": "bert", "num_hidden_layers": 2}
    tree = table.module_tree(config | ({"architectures": [architecture]} if architecture else {}))
    assert tree.encoder and tree.count == modules and tree.vocabulary == 2048
    assert ((None, "other") in tree.parts()) == (modules == 14)


ENCODER = """g (int64[B, S] input_ids, int64[B, S] attention_mask) =>
  (float[B, S, {width}] {output}) {{
    x = Gather(table, input_ids) n = LayerNormalization(x, gain)
    h = MatMul(n, up) g = Gelu(h) d = MatMul(g, down) z = Add(d, n) {head} }}"""


def test_numbers_of_encoders(table, rng, tmp_path):
    """By their logits, where they have any: against the formulas themselves."""
    import numpy as np
    import onnx_ir as ir
    from encoder_numbers import encoder_numbers
    from support.tiny_graphs import build

    from fptq_onnx.runtime.session import open_session

    windows = [np.arange(5), np.arange(7, 2, -1)]
    shapes = {"table": (50, 32), "up": (32, 64), "down": (64, 32), "head": (32, 50)}
    for output, width, head in (
        ("logits", 50, "logits = MatMul(z, head)"),
        ("last_hidden_state", 32, "last_hidden_state = Identity(z)"),
    ):
        weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        if output != "logits":
            del weights["head"]
        results = []
        for name, factor in (("a", 1), ("b", 1.05)):
            arrays = {key: value.astype(np.float32) for key, value in weights.items()}
            arrays |= {"gain": np.ones(32, np.float32), "up": arrays["up"] * np.float32(factor)}
            folder = tmp_path / output / name
            folder.mkdir(parents=True)
            text = ENCODER.format(width=width, output=output, head=head)
            ir.save(build(text, arrays, opset=20), folder / "model.onnx")
            session = open_session(folder / "model.onnx", threads=1)
            results.append([
                session.run([output], {"input_ids": w[None], "attention_mask": w[None] * 0 + 1})[0]
                for w in windows
            ])  # fmt: skip
        got = encoder_numbers(*(tmp_path / output / name for name in "ab"), windows)
        one, two = (np.concatenate(parts, 1)[0].astype(np.float64) for parts in results)
        if output == "logits":
            log_p, log_q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (one, two))
            expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
            assert got.top1 == (one.argmax(-1) == two.argmax(-1)).mean()
        else:
            expected = np.square(one - two).sum() / np.square(one).sum()
            assert got.top1 is None
        assert got.error == pytest.approx(expected, rel=1e-4) and got.error > 0


def test_reasons_that_a_fold_is_not_there(table, rng, tmp_path):
    """A residual of a normalized value, and a gelu: seen in the graph, whatever names say."""
    import numpy as np
    from fold_reasons import is_residual, reads_gelu
    from support.tiny_graphs import build

    from fptq_onnx.graph.linears.linears import find_linears

    shapes = {"table": (50, 32), "up": (32, 64), "down": (64, 32), "head": (32, 50)}
    arrays = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    arrays["gain"] = np.ones(32, np.float32)
    text = ENCODER.format(width=50, output="logits", head="logits = MatMul(z, head)")
    scans = [
        find_linears(build(t, arrays, opset=20))
        for t in (text, text.replace("Add(d, n)", "Add(d, x)").replace("Gelu", "Relu"))
    ]
    for scan, expected in zip(scans, (True, False), strict=True):
        up, down, head = scan.linears
        assert is_residual(up.x) == expected and not is_residual(down.x)
        assert reads_gelu(down, scan) == expected and not reads_gelu(up, scan)
        assert not reads_gelu(head, scan)
