import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq_onnx.evaluation.perplexity import compare, perplexity
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import first_windows, read_documents, read_special_ids

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "models"
DEMO = MODELS / "tinystories-7m"
SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
EXPORT = SHARED / "onnx" / "tinystories-7m-genai"
VALID = SHARED / "text" / "ts_valid.txt"


@pytest.fixture(scope="module")
def embed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embed", MODELS / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_model_fits_in_git_and_is_whole() -> None:
    files = {file.name: file.stat().st_size for file in DEMO.iterdir()}
    assert set(files) == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "heldout.txt",
        "README.md",
    }
    assert sum(files.values()) <= 12_000_000
    special = read_special_ids(DEMO)
    assert (special.bos, special.eos, special.vocab_size) == (1, (2,), 2048)
    assert special.context_length == 256


def test_its_held_out_text() -> None:
    documents, more = read_documents(DEMO / "heldout.txt")
    assert (len(documents), more) == (57, False)
    assert 45_000 < (DEMO / "heldout.txt").stat().st_size <= 50_000


def test_its_large_matrices_are_float16_behind_casts() -> None:
    model = ir.load(DEMO / "model.onnx")
    halves = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert len(halves) == 32
    for value in halves:
        (consumer,) = value.consumers()
        assert (consumer.op_type, consumer.outputs[0].dtype) == ("Cast", ir.DataType.FLOAT)
        assert f"{consumer.outputs[0].name}_fp16" == value.name
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.location == "model.onnx.data"
        assert tensor.offset is not None
        assert tensor.offset % 64 == 0


@pytest.mark.slow
def test_the_figure_in_its_card() -> None:
    windows = first_windows(DEMO / "heldout.txt", DEMO, count=10**3, length=256)
    assert len(windows) == 54
    found = perplexity(open_decoder(DEMO, threads=2), windows)
    # Three decimals stand in the card; another machine's float32 sums move the sixth.
    assert f"{found:.3f} on `heldout.txt`" in (DEMO / "README.md").read_text("utf-8")


@pytest.mark.process
@pytest.mark.skipif(not EXPORT.is_dir(), reason="no shared export here")
def test_it_is_the_export_rounded(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, MODELS / "embed.py", EXPORT, out, "--heldout", VALID]
    subprocess.run(command, check=True, capture_output=True)
    for file in out.iterdir():
        assert file.read_bytes() == (DEMO / file.name).read_bytes(), file.name
    windows = first_windows(VALID, EXPORT, count=20, length=256)
    result = compare(open_decoder(EXPORT, threads=2), open_decoder(DEMO, threads=2), windows)
    assert abs(result.perplexity / result.perplexity_reference - 1) < 1e-3
    assert result.kl > 0  # the weights did change


def test_embedding_a_small_model_by_hand(embed: ModuleType) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {
      1, 0.1, 0, 0,  0, 2, 0, 0,  0, 0, 3, 0,  0, 0, 0, 4}, float[4] gain = {1, 1, 1, 1.0001}>
    { h = MatMul(x, w) y = Mul(h, gain) }"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    embed.MIN_ELEMENTS = 16
    assert embed.store_as_float16(model) == 1
    x = np.eye(4, dtype=np.float32)
    after = ir.to_proto(model).SerializeToString()
    (got,) = ort.InferenceSession(after).run(None, {"x": x})
    (before,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    want = before.copy()
    want[0, 1] = np.float32(np.float16(0.1))  # of the weights only 0.1 is no float16
    np.testing.assert_array_equal(got, want)  # the gain, no matrix, is untouched
    assert got[0, 1] != before[0, 1]


def test_a_weight_too_large_for_float16_is_refused(embed: ModuleType) -> None:
    model = ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
    m (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 70000, 0, 1}>
    { y = MatMul(x, w) }""")
    )
    embed.MIN_ELEMENTS = 4
    with pytest.raises(ValueError, match="w does not fit float16"):
        embed.store_as_float16(model)


def test_whole_documents_up_to_a_size(embed: ModuleType) -> None:
    text = "one\n<|endoftext|>\ntwo\n<|endoftext|>\n"
    assert embed.first_documents(text, 18) == "one\n<|endoftext|>\n"
    assert embed.first_documents(text, 17) == ""
