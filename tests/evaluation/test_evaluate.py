"""Evaluation as a whole, against computations that share no code with it but the tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tokenizers
from support.bigrams import bigram_text, parsed
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.evaluate import evaluate_model
from fptq_onnx.evaluation.settings import EvalSettings
from fptq_onnx.evaluation.table import evaluation_table

TEXT = MODEL / "heldout.txt"


def stories() -> list[str]:
    return [story.strip() for story in TEXT.read_text("utf-8").split("<|endoftext|>")][:-1]


def plain_logits(session: ort.InferenceSession, ids: list[int]) -> np.ndarray:
    """Logits [n, 2048] of the embedded model, fed by hand."""
    feeds = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
    }
    for layer in range(6):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{layer}.{kind}"] = np.zeros((1, 4, 0, 32), np.float32)
    return session.run(["logits"], feeds)[0][0].astype(np.float64)


@pytest.fixture(scope="module")
def plain() -> tuple[ort.InferenceSession, tokenizers.Tokenizer]:
    session = ort.InferenceSession(str(MODEL / "model.onnx"), providers=["CPUExecutionProvider"])
    return session, tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.mark.slow
def test_perplexity_equals_an_independent_computation(plain) -> None:
    session, tokenizer = plain
    ids = [
        i
        for story in stories()
        for i in [1, *tokenizer.encode(story, add_special_tokens=False).ids]
    ]
    windows = [ids[start : start + 256] for start in range(0, len(ids), 256)]
    assert len(windows[-1]) >= 16  # or evaluation leaves it out
    sums = []
    for window in windows:
        logits = plain_logits(session, window)
        log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        sums.append(sum(log_z[i] - logits[i, window[i + 1]] for i in range(len(window) - 1)))
    counts = np.array([len(window) - 1 for window in windows])
    want = np.exp(np.sum(sums) / counts.sum())
    result = evaluate_model(MODEL, EvalSettings(TEXT), threads=1, quiet=True).perplexity
    assert result is not None
    assert (result.windows, result.predictions) == (len(windows), counts.sum())
    assert result.perplexity.value == pytest.approx(want, rel=1e-6)
    # Leaving one window out at a time (jackknife): another way to the same error, to first order.
    left = [(np.sum(sums) - s) / (counts.sum() - n) for s, n in zip(sums, counts, strict=True)]
    m = len(windows)
    error = want * np.sqrt((m - 1) / m * np.square(np.array(left) - np.mean(left)).sum())
    assert result.perplexity.standard_error == pytest.approx(error, rel=0.02)


def test_last_words_equal_an_independent_computation(plain, tmp_path: Path) -> None:
    session, tokenizer = plain
    passages = [" ".join(story.split(" ")[:40]) for story in stories()[:25]]
    data = tmp_path / "passages.jsonl"
    data.write_text("".join(json.dumps({"story": text}) + "\n" for text in passages))
    hits, nll = 0, []
    for passage in passages:
        cut = passage.rindex(" ")
        whole = tokenizer.encode(passage, add_special_tokens=False).ids
        target = whole[len(tokenizer.encode(passage[:cut], add_special_tokens=False).ids) :]
        logits = plain_logits(session, [1, *whole])[-len(target) - 1 : -1]
        hits += logits.argmax(1).tolist() == target
        log_z = np.log(np.exp(logits).sum(1))
        nll.append(sum(log_z[i] - logits[i, token] for i, token in enumerate(target)))
    settings = EvalSettings(data, text_field="story", tasks=("lambada",))
    result = evaluate_model(MODEL, settings, threads=1, quiet=True)
    assert result.perplexity is None and result.lambada is not None
    assert 0 < hits < 25  # or the comparison says little
    assert result.lambada.accuracy.value == hits / 25
    assert result.lambada.perplexity.value == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)


def test_a_model_against_itself() -> None:
    settings = EvalSettings(TEXT, max_windows=3, tasks=("lambada", "perplexity"))
    result = evaluate_model(MODEL, settings, reference=MODEL, threads=1, quiet=True)
    metrics, words = result.perplexity, result.lambada
    assert metrics is not None and words is not None
    assert metrics.kl is not None and metrics.top1 is not None
    assert (metrics.kl.value, metrics.kl.standard_error, metrics.kl_max) == (0, 0, 0)
    assert (metrics.top1.value, metrics.top1.standard_error) == (1, 0)
    assert metrics.perplexity == metrics.perplexity_reference
    assert metrics.perplexity_ratio is not None and metrics.perplexity_ratio.value == 1
    assert words.accuracy_change is not None and words.accuracy_change.value == 0
    assert (metrics.windows, words.passages, metrics.positions) == (3, 3, 768)


def test_a_converted_model_brings_its_own_ops(tmp_path: Path) -> None:
    from fptq_onnx.calibration.samples import Samples
    from fptq_onnx.conversion.pipeline import convert
    from fptq_onnx.scheme.config import PAPER

    few = Samples(max_samples=2, max_seq_len=32)
    convert(MODEL, tmp_path / "out", config=PAPER, samples=few, verify_samples=0)
    settings = EvalSettings(TEXT, max_windows=6)
    result = evaluate_model(tmp_path / "out", settings, reference=MODEL, threads=1, quiet=True)
    metrics = result.perplexity
    assert metrics is not None and metrics.kl is not None and metrics.top1 is not None
    assert metrics.perplexity_reference is not None and metrics.perplexity_ratio is not None
    alone = evaluate_model(MODEL, settings, threads=1, quiet=True).perplexity
    assert alone is not None and metrics.perplexity_reference == alone.perplexity
    assert 0 < metrics.kl.value < 0.1 and 0.8 < metrics.top1.value < 1
    ratio = metrics.perplexity.value / metrics.perplexity_reference.value
    assert metrics.perplexity_ratio.value == pytest.approx(ratio, rel=1e-12)
    # The same windows through both models: the ratio is known far better than either.
    assert metrics.perplexity_ratio.standard_error is not None
    assert metrics.perplexity.standard_error is not None
    assert metrics.perplexity_ratio.standard_error < metrics.perplexity.standard_error / 10
    lines = evaluation_table(result)
    row = next(line for line in lines if line.startswith("KL to reference"))
    assert row.split()[-2:] == [
        f"{metrics.kl.value:.5f}", f"{metrics.kl.standard_error:.5f}"
    ]  # fmt: skip


def small(folder: Path, text: str) -> Path:
    folder.mkdir()
    onnx.save(parsed(text), folder / "model.onnx")
    return folder


def product_text(a: list[float], b: list[float], shape: str) -> str:
    """A model of 2048 tokens whose logits after token i are a[i] * b."""
    left, right = (", ".join(map(str, values)) for values in (a, b))
    return f"""m (int64[{shape}] input_ids) => (float[{shape}, 2048] logits)
      <float[2048, 1] a = {{{left}}}, float[2048] b = {{{right}}}>
      {{ g = Gather(a, input_ids) logits = Mul(g, b) }}"""


def test_a_graph_of_fixed_length(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = rng.normal(0, 2, (2, 2048)).round(2).tolist()
    loose = small(tmp_path / "loose", product_text(a, b, "B, S"))
    fixed = small(tmp_path / "fixed", product_text(a, b, "1, 24"))
    shutil.copy(MODEL / "tokenizer.json", fixed)
    text = tmp_path / "short.txt"
    text.write_text(stories()[0][:400])
    settings = EvalSettings(text, tasks=("perplexity", "lambada"), max_windows=4)
    result = evaluate_model(fixed, settings, reference=loose, threads=1, quiet=True)
    metrics, words = result.perplexity, result.lambada
    assert result.window == 24 and result.prefix == (1,)
    assert metrics is not None and metrics.kl is not None and words is not None
    assert metrics.windows == 4 and metrics.kl.value == 0
    assert words.shortened == 1 and words.perplexity == words.perplexity_reference


@pytest.mark.parametrize(
    ("given", "saying"),
    [
        ({"data": Path("x.npz")}, "must end in .txt or .jsonl"),
        ({"max_windows": 0}, "--max-windows must be at least 1"),
        ({"window": 1}, "--window must be at least 2"),
        ({"tasks": ("mmlu",)}, "unknown task 'mmlu': the tasks are perplexity and lambada"),
    ],
)
def test_settings_that_make_no_sense(given, saying) -> None:
    with pytest.raises(FptqError, match=saying):
        EvalSettings(**{"data": TEXT, **given})


def test_default_tasks() -> None:
    assert EvalSettings(Path("a.txt")).chosen_tasks == ("perplexity",)
    assert EvalSettings(Path("a.jsonl")).chosen_tasks == ("perplexity", "lambada")
    assert EvalSettings(Path("a.jsonl"), tasks=("lambada",)).chosen_tasks == ("lambada",)


def test_models_that_do_not_go_together(tmp_path: Path) -> None:
    narrow = small(tmp_path / "narrow", bigram_text([[0.0, 0.0]] * 2))
    with pytest.raises(FptqError, match="has 2048 tokens and the reference's 2; compare"):
        evaluate_model(MODEL, EvalSettings(TEXT), reference=narrow, quiet=True)
    settings = EvalSettings(TEXT, tokenizer_folder=MODEL)
    with pytest.raises(
        FptqError, match="the tokenizer has ids up to 2047 but the model knows only 2"
    ):
        evaluate_model(narrow, settings, quiet=True)


@pytest.mark.parametrize(
    "name", ["tinystories-7m-dynamo-past", "gpt2-optimum", "opt-optimum", "llama-genai"]
)
def test_any_exporters_decoder(name: str, shared_exports: Path) -> None:
    """With lines of LAMBADA; most of these models know nothing, so only that it goes through."""
    model = shared_exports / name
    own = (model / "tokenizer.json").is_file()
    settings = EvalSettings(
        shared_exports.parent / "text" / "lambada_test.jsonl",
        max_windows=2,
        window=64,
        tokenizer_folder=None if own else MODEL,
    )
    result = evaluate_model(model, settings, threads=1, quiet=True)
    assert result.perplexity is not None and result.lambada is not None
    assert result.perplexity.perplexity.value > 1 and result.lambada.passages == 2
