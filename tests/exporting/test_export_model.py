"""Every exporter for real, then the conversion: needs the extra export (make test-export)."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.command_line import (
    MODEL,
    RANDOM_FEW,
    assert_refused,
    command,
    leftovers,
    process,
    refused,
)
from support.hf_models import small_bert, small_gpt2, small_llama

from fptq_onnx.exporting.exporters import EXPORTERS
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.runtime.session import open_session

pytest.importorskip("torch", reason="needs the extra export: make test-export")

pytestmark = pytest.mark.process
if importlib.util.find_spec("optimum") is None:
    pytest.skip("needs the extra export: make test-export", allow_module_level=True)

FEW = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model by each exporter, with what the command said in `said`."""
    folder = tmp_path_factory.mktemp(request.param) / "out"
    done = command("export", llama, "-o", folder, "--exporter", request.param)
    assert done.returncode == 0, done.stderr
    assert "check        differs from torch by" in done.stdout
    assert f"output       {folder}" in done.stdout
    return folder


def test_what_is_in_the_folder(exported: Path, llama: Path) -> None:
    names = leftovers(exported)
    assert {"model.onnx", "config.json", "export.json"} <= set(names)
    assert not [name for name in names if name.startswith(".")]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (exported / name).read_bytes() == (llama / name).read_bytes()
    export = json.loads((exported / "export.json").read_text())
    assert export["architecture"] == "LlamaForCausalLM"
    assert 0 <= export["max_rel_diff"] < 1e-5
    assert leftovers(exported.parent) == ["out"]


def test_logits_are_those_of_torch(exported: Path, llama: Path) -> None:
    """Longer, another batch size, and the cache in pieces: not what the export itself checked."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(1).integers(3, 2048, (3, 40))
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    decoder = open_decoder(exported, threads=1)
    parts, cache = [], None
    for piece in np.split(ids, [37, 38, 39], axis=1):
        step = decoder.forward(piece, cache)
        parts.append(step.logits)
        cache = step.cache
    # float32 sums in another order: about 1e-6 of the largest logit on two layers.
    assert np.abs(np.concatenate(parts, 1) - expected).max() <= 2e-5 * np.abs(expected).max()


def test_it_converts(exported: Path, tmp_path: Path) -> None:
    done = command("convert", exported, "-o", tmp_path / "w", *FEW)
    assert done.returncode == 0, done.stderr
    # q, k and v are one linear in the builder's graph.
    linears = 11 if (exported / "genai_config.json").is_file() else 15
    assert json.loads((tmp_path / "w" / "report.json").read_text())["linears"] == linears


def test_convert_takes_the_hf_folder(llama: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    done = command(
        "convert", llama, "-o", tmp_path / "w", "--exporter", "dynamo", "--target",
        "custom,matmulnbits", *FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path) == ["w"] and leftovers(tmp_path / "w") == ["custom", "matmulnbits"]
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said.index("exporting") < said.index("exported") < said.index("linears")
    ran = command("run", tmp_path / "w" / "custom", "--prompt", "Once", "--max-new-tokens", "3")
    assert ran.returncode == 0 and ran.stdout.startswith("Once"), ran.stderr
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_convert_refuses_before_it_exports(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.txt").write_text("mine")
    started = time.monotonic()
    refused("convert", llama, "-o", tmp_path / "w", *FEW, saying="exists: give --overwrite")
    refused("convert", llama, "-o", tmp_path / "v", "--v0", "-3", saying="v0")
    assert time.monotonic() - started < 10
    assert leftovers(tmp_path) == ["w"]


def test_a_dry_run_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    done = command("convert", llama, "-o", tmp_path / "w", "--dry-run", *FEW)
    assert done.returncode == 0 and "schemes" in done.stdout, done.stderr
    assert leftovers(tmp_path) == []


def test_overwrite_only_an_export(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("{}")
    refused("export", llama, "-o", out, saying="give --overwrite")
    refused("export", llama, "-o", out, "--overwrite", saying="no export.json")
    (out / "export.json").write_text("{}")
    done = command("export", llama, "-o", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert not (out / "report.json").exists() and (out / "model.onnx").is_file()
    refused("export", llama, "-o", llama / "onnx", saying="is inside the input")


def test_weights_in_bfloat16_and_tied(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = small_llama(tmp_path / "hf", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    done = command("export", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    dtypes = {
        value.const_value.dtype
        for value in ir.load(tmp_path / "out" / "model.onnx").graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    assert dtypes == {ir.DataType.FLOAT}


def test_an_encoder(tmp_path: Path) -> None:
    folder = small_bert(tmp_path / "bert")
    refused("export", folder, "-o", tmp_path / "o", saying="BertModel is not a causal language mo")
    done = command("export", folder, "-o", tmp_path / "out", "--exporter", "optimum")
    assert done.returncode == 0, done.stderr
    # Converted, it runs in a plain session with the library registered.
    samples = tmp_path / "samples.npz"
    ids = np.random.default_rng(0).integers(5, 2048, (1, 24))
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    np.savez(samples, **feeds)
    done = command(
        "convert", tmp_path / "out", "-o", tmp_path / "w", "--recipe", "paper", "--calibration",
        samples,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (
        open_session(tmp_path / name / "model.onnx", threads=1).run(["last_hidden_state"], feeds)[0]
        for name in ("out", "w")
    )
    error = np.square(after - before).sum() / np.square(before).sum()
    assert 0 < error < 0.03  # int4 weights: some 1 % of the energy, wrong ones near 200 %


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("BertForMaskedLM", (1, 24, 2048)), ("BertForSequenceClassification", (1, 2)),
     ("BertForTokenClassification", (1, 24, 2))],
)  # fmt: skip
def test_an_encoder_keeps_its_head(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    folder = small_bert(tmp_path / "bert", kind)
    done = command("export", folder, "-o", tmp_path / "out", "--exporter", "optimum")
    assert done.returncode == 0, done.stderr
    ids = np.full((1, 24), 7)
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    (got,) = open_session(tmp_path / "out" / "model.onnx", threads=1).run(["logits"], feeds)
    assert got.shape == shape
    done = command("convert", tmp_path / "out", "-o", tmp_path / "w", *FEW)
    assert done.returncode == 0, done.stderr
    assert "worst output logits" in done.stdout


def test_an_encoder_for_masked_tokens_without_token_types(tmp_path: Path) -> None:
    """Its inputs and outputs are those of a decoder without a cache."""
    folder = small_bert(tmp_path / "roberta", "RobertaForMaskedLM")
    done = command("export", folder, "-o", tmp_path / "out", "--exporter", "optimum")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out" / "config.json").rename(tmp_path / "config.json")
    for config in (False, True):  # from what it computes, and from its configuration
        if config:
            (tmp_path / "config.json").rename(tmp_path / "out" / "config.json")
        done = command("convert", tmp_path / "out", "-o", tmp_path / f"w{config}", *FEW)
        assert done.returncode == 0, done.stderr
        assert "worst output logits" in done.stdout and "perplexity" not in done.stdout
    refused(
        "run", tmp_path / "wTrue", "--prompt", "Once",
        saying="not a causal language model: config.json says RobertaForMaskedLM",
    )  # fmt: skip


def test_a_head_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = small_bert(tmp_path / "bert", "BertForNextSentencePrediction")
    refused(
        "export", folder, "-o", tmp_path / "o", "--exporter", "optimum",
        saying="BertForNextSentencePrediction is neither a causal language model nor an encoder",
    )  # fmt: skip
    assert leftovers(tmp_path) == ["bert"]


def test_a_model_of_pictures_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=48, image_size=32)  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path / "vit")
    refused(
        "export", tmp_path / "vit", "-o", tmp_path / "out", "--exporter", "optimum",
        saying="ViTModel takes pixel_values, not tokens: export it with optimum-cli",
    )  # fmt: skip


def test_an_architecture_that_an_exporter_does_not_know(tmp_path: Path) -> None:
    folder = small_gpt2(tmp_path / "gpt2")
    refused(
        "export", folder, "-o", tmp_path / "out", saying="does not support this architecture: try"
    )
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "no_such_model"
    (folder / "config.json").write_text(json.dumps(config))
    refused("export", folder, "-o", tmp_path / "out", saying="transformers does not know this mod")
    assert leftovers(tmp_path) == ["gpt2"]


def test_damaged_weights(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "hf")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    refused("export", folder, "-o", tmp_path / "out", saying="the exporter failed (")
    assert leftovers(tmp_path) == ["hf"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_full_disk(llama: Path, tmp_path: Path, exporter: str) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    words = ("export", llama, "-o", tmp_path / "out", "--exporter", exporter)
    done = process(*words, preexec_fn=small_files_only)
    assert_refused(done, saying="the disk is full")
    assert leftovers(tmp_path) == []


def test_interrupted(llama: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx", "export", str(llama), "-o", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    workers: list[int] = []
    while not workers and time.monotonic() < deadline:
        workers = children(process.pid)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "interrupted, nothing was written" in process.communicate(timeout=60)[1]
    assert process.returncode == 130 and leftovers(tmp_path) == []
    assert workers and not any(Path("/proc", str(pid)).exists() for pid in workers)


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_verbose_shows_what_the_exporter_prints(llama: Path, tmp_path: Path) -> None:
    quiet = command("export", llama, "-o", tmp_path / "a", "-q")
    loud = command("export", llama, "-o", tmp_path / "b", "-q", "--verbose")
    assert quiet.returncode == loud.returncode == 0, loud.stderr
    assert "Reading embedding layer" in loud.stderr and "Reading" not in quiet.stderr
    assert os.listdir(tmp_path / "a") and MODEL.is_dir()
