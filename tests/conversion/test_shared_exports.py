"""Real exports, end to end, where the shared data is present."""

import os
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import load_model
from fptq_onnx.scheme.config import PAPER
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
EXPORTS = sorted(path.name for path in (SHARED / "onnx").glob("*") if path.is_dir())
# Linears of each architecture's modules (2 layers and a head), by what the exporter fuses.
LINEARS = {
    "tinystories-7m-genai": 31,
    "tinystories-7m-outliers-genai": 31,
    "tinystories-7m-outliers-optimum": 43,
    "tinystories-7m-dynamo-past": 43,
    "bloom-optimum": 9,
    "gpt2-optimum": 9,
    "opt-optimum": 13,
    "llama-genai": 11,
    "llama-tied-genai-shared": 11,
    "phi3-genai": 11,
    "qwen2-genai": 11,
}

pytestmark = [pytest.mark.skipif(not EXPORTS, reason="no shared exports here"), pytest.mark.slow]


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_converts_and_computes_nearly_the_same(name, tmp_path):
    result = convert(
        SHARED / "onnx" / name,
        tmp_path / "out",
        samples=Samples(max_samples=2, max_seq_len=32),
        verify_samples=2,
    )
    report = result.reports["custom"]
    assert report.linears == LINEARS.get(name, 15)
    # Round to nearest at block 128 gives 0.015 to 0.09 on these; wrong weights give far more.
    assert 0 < report.verification["kl"] < 0.15


@pytest.mark.parametrize("name", EXPORTS)
def test_equalization_alone_changes_nothing(name, tmp_path):

    result = convert(
        SHARED / "onnx" / name,
        tmp_path / "out",
        samples=Samples(max_samples=2, max_seq_len=32),
        config=replace(PAPER, v0=0.0, v1=1e9, quantize=False),
        verify_samples=2,
    )
    report = result.reports["float"]
    # Every norm before linears folds: two a layer and the last one, unless the head's weight is the
    # embedding too and would be stored a second time.
    model = load_model(SHARED / "onnx" / name).model
    head = find_linears(model).linears[-1].weight.sources[0]
    tied = any(use.node.op_type in ("Gather", "Transpose") for use in head.uses()) and any(
        use.node.op_type == "Gather"
        for value in (head, *(made for use in head.uses() for made in use.node.outputs))
        for use in value.uses()
    )
    norms = (13 if name.startswith("tinystories") else 5) - tied
    assert len(report.folded) == norms
    assert report.bytes_after < 1.02 * report.bytes_before + 65_536
    assert report.verification["max_rel_diff"] <= 1e-5


@pytest.mark.parametrize("exporter", ["genai", "optimum"])
def test_outliers_get_all_three_schemes(exporter, tmp_path):
    source = SHARED / "onnx" / f"tinystories-7m-outliers-{exporter}"
    result = convert(
        source,
        tmp_path / "out",
        samples=Samples(SHARED / "text" / "ts_train.txt", max_samples=16),
        config=PAPER,
    )
    counts = result.plan.counts()
    assert counts["static"] and counts["lae_static"] and counts["per_token"]
    schemes = {entry.path: entry.scheme for entry in result.plan.linears}
    assert all(schemes[f"model.layers.{i}.mlp.down_proj"] == PER_TOKEN for i in (1, 4, 5))
    sites = {e.fold_site for e in result.plan.linears if e.scheme == LAE_STATIC}
    assert None not in sites and sites == set(result.reports["custom"].folded)
    before = {node.op_type for node in ir.load(source / "model.onnx").graph}
    after = {node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph}
    assert after - before == {"MatMulW4A8"}
    assert result.reports["custom"].verification["kl"] < 0.0195
