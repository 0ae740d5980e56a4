"""lm-evaluation-harness on the embedded model: its numbers are those of `fptq-onnx eval`."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.evaluate import evaluate_model
from fptq_onnx.evaluation.settings import EvalSettings
from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import load_tokenizer, read_documents

pytest.importorskip("lm_eval", reason="needs the extra lm-eval: pip install '.[lm-eval]'")

pytestmark = pytest.mark.process

TASKS = Path(__file__).parent / "lm_eval_tasks"


def lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tasks and their data; texts from the stories beside the embedded model."""
    work = Path(shutil.copytree(TASKS, tmp_path_factory.mktemp("lm") / "tasks"))
    stories, _ = read_documents(MODEL / "heldout.txt")
    passages = [" ".join(story.split(" ")[:40]) for story in stories[:20]]
    lines(work / "passages.jsonl", [{"text": text} for text in passages])
    short = [story[:500].strip() for story in stories[:3]]
    lines(work / "documents.jsonl", [{"page": text} for text in [*short, " ".join(stories[:3])]])
    openings = ["Once upon a time", "Tom had a red"]
    lines(work / "openings.jsonl", [{"opening": text, "sentence": "?"} for text in openings])
    return work


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    """What the command line wrote for all tasks in one run."""
    done = lm_eval(
        folder,
        *("--model", "fptq-onnx", "--model_args", f"pretrained={MODEL},threads=1"),
        *("--tasks", "local_lambada,local_wikitext,local_mmlu,local_story"),
        *("--include_path", ".", "--output_path", "out", "--log_samples"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fptq-onnx" in done.stdout and "local_mmlu" in done.stdout
    (written,) = (folder / "out").rglob("results_*.json")
    return {
        "results": json.loads(written.read_text())["results"],
        "samples": {
            name: [json.loads(line) for line in file.read_text().splitlines()]
            for file in (folder / "out").rglob("samples_*.jsonl")
            for name in ("local_lambada", "local_wikitext", "local_mmlu", "local_story")
            if file.name.startswith(f"samples_{name}")
        },
    }


def lm_eval(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fptq_onnx.lm_eval_model", *arguments],
        cwd=folder,
        env={**os.environ, **offline, "PYTHONPATH": str(TASKS.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def nll(ids: list[int], first: int, context: int) -> float:
    """Negative log-likelihood of ids[first:], each fed the `context` ids before it, by the step."""
    decoder = open_decoder(MODEL, threads=1)
    total = 0.0
    for place in range(first, len(ids)):
        window = np.array(ids[max(0, place - context) : place], np.int64)
        row = decoder.forward(window[None]).logits[0, -1].astype(np.float64)
        total -= row[ids[place]] - np.log(np.exp(row).sum())
    return total


def written_after(prompt: list[int], ids: list[int]) -> str:
    tokenizer = load_tokenizer(MODEL)
    return tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)) :]


def test_lambada(folder: Path, results: dict) -> None:
    settings = EvalSettings(folder / "passages.jsonl", tasks=("lambada",))
    ours = evaluate_model(MODEL, settings, threads=1, quiet=True).lambada
    theirs = results["results"]["local_lambada"]
    assert ours is not None and 0 < ours.accuracy.value < 1
    assert theirs["acc,none"] == ours.accuracy.value
    assert theirs["perplexity,none"] == pytest.approx(ours.perplexity.value, rel=1e-12)
    # lm_eval's error is the sample's, over n - 1.
    assert theirs["acc_stderr,none"] == pytest.approx(
        ours.accuracy.standard_error * math.sqrt(20 / 19), rel=1e-9
    )


def test_wikitext(folder: Path, results: dict, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    logged = sorted(results["samples"]["local_wikitext"], key=lambda sample: sample["doc_id"])
    scores = [float(sample["filtered_resps"][0]) for sample in logged]
    tokenizer = load_tokenizer(MODEL)
    for record, score in list(zip(records, scores, strict=True))[:3]:
        # Shorter than the context: one window, and eval's perplexity of a file with this alone.
        lines(tmp_path / "one.jsonl", [record])
        settings = EvalSettings(tmp_path / "one.jsonl", text_field="page", tasks=("perplexity",))
        ours = evaluate_model(MODEL, settings, threads=1, quiet=True).perplexity
        assert ours is not None and ours.windows == 1
        want = math.log(ours.perplexity.value) * ours.predictions
        assert -score == pytest.approx(want, rel=1e-12)
    # Longer: after the first 256 tokens, 256 at a time with as much context as there is room for.
    ids = [1, *tokenizer.encode(records[3]["page"], add_special_tokens=False).ids]
    decoder = open_decoder(MODEL, threads=1)
    total, done = 0.0, 1
    while done < len(ids):
        end = min(done + 256, len(ids))
        window = ids[max(0, end - 257) : end]
        logits = decoder.forward(np.array([window[:-1]])).logits[0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        new = range(len(window) - (end - done), len(window))
        total += sum(log_p[place - 1, window[place]] for place in new)
        done = end
    assert len(ids) > 2 * 256 + 20 and len(ids) % 256 > 20  # three windows, the last one partial
    assert scores[3] == pytest.approx(total, rel=1e-9)
    bytes_ = sum(len(record["page"].encode()) for record in records)
    bits = results["results"]["local_wikitext"]["bits_per_byte,none"]
    assert bits == pytest.approx(-sum(scores) / bytes_ / math.log(2), rel=1e-9)


def test_mmlu(results: dict) -> None:
    tokenizer = load_tokenizer(MODEL)
    samples = results["samples"]["local_mmlu"]
    assert len(samples) == 6
    hits = 0
    for sample in samples:
        scores = []
        for (answer, _), argument in zip(
            [response[0] for response in sample["resps"]],
            sample["arguments"].values(),
            strict=True,
        ):
            context, choice = argument["arg_0"], argument["arg_1"]
            assert context.endswith("\nAnswer:") and choice in (" A", " B", " C", " D")
            start = len(tokenizer.encode(context, add_special_tokens=False).ids) + 1
            ids = [1, *tokenizer.encode(context + choice, add_special_tokens=False).ids]
            scores.append(-nll(ids, start, 256))
            assert float(answer) == pytest.approx(scores[-1], abs=1e-4)
        hits += int(np.argmax(scores)) == sample["doc"]["answer"]
    assert results["results"]["local_mmlu"]["acc,none"] == pytest.approx(hits / 6)


def test_free_text(results: dict) -> None:
    tokenizer, decoder = load_tokenizer(MODEL), open_decoder(MODEL, threads=1)
    for sample in results["samples"]["local_story"]:
        prompt = [1, *tokenizer.encode(sample["doc"]["opening"], add_special_tokens=False).ids]
        ids = list(generate(decoder, prompt, 40, eos=(2,)))
        written = written_after(prompt, ids)
        assert "." in written  # or stopping is not tested
        assert sample["resps"] == [[written.split(".")[0]]]


def test_an_error_is_one_line(folder: Path) -> None:
    arguments = ("--tasks", "local_mmlu", "--include_path", ".")
    done = lm_eval(folder, "--model", "fptq-onnx", "--model_args", "pretrained=absent", *arguments)
    assert done.returncode == 2
    assert "fptq-onnx: error: no such file or folder: absent" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_options_of_the_model() -> None:
    from fptq_onnx.lm_eval_model import FptqOnnxLM

    model = FptqOnnxLM.create_from_arg_string(f"pretrained={MODEL},add_bos_token=False,threads=1")
    with_bos = FptqOnnxLM.create_from_arg_string(f"pretrained={MODEL},max_length=64")
    assert with_bos.tok_encode("a b") == [1, *model.tok_encode("a b")]
    assert with_bos.tok_encode("<s>a b") == with_bos.tok_encode("a b")
    assert (model.max_length, with_bos.max_length, model.prefix_token_id) == (256, 64, 1)
    request = type("Request", (), {"args": ("Once", {"until": [], "do_sample": True})})()
    with pytest.raises(FptqError, match="greedily only"):
        model.generate_until([request])
    request.args = ("Once", {"until": [], "max_gen_toks": 256})
    with pytest.raises(FptqError, match="leaves no room"):
        model.generate_until([request], disable_tqdm=True)
    # A context too long for what is to be written loses its start.
    long = "Tom had a red ball. " * 40
    kept = model.tok_encode(long)[-56:]
    request.args = (long, {"until": [], "max_gen_toks": 200})
    ids = list(generate(open_decoder(MODEL, threads=1), kept, 200, eos=(2,)))
    assert model.generate_until([request], disable_tqdm=True) == [written_after(kept, ids)]
    request.args = ("", " Once")
    assert model.loglikelihood([request], disable_tqdm=True)[0][0] < 0  # after BOS alone
