import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from support.bigrams import bigram, bigram_text, session

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation import window_metrics
from fptq_onnx.evaluation.output_difference import token_errors
from fptq_onnx.evaluation.perplexity import compare, compare_outputs, perplexity
from fptq_onnx.runtime.decoder import Decoder, open_decoder
from fptq_onnx.text.windows import first_windows

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "models" / "tinystories-7m"


EVEN = [[0.0, 0.0], [0.0, 0.0]]
# softmax([ln 3, 0]) = [3/4, 1/4]
LEANING = [[math.log(3), 0.0], [0.0, 0.0]]


def test_by_hand() -> None:
    # Window 0 0 1: two predictions (0 -> 0, 0 -> 1), three positions.
    result = compare(bigram(EVEN), bigram(LEANING), [np.array([0, 0, 1])])
    row = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # KL at id 0; id 1 has none
    # float32 ln 3 is off by 2^-24 of itself at most, and so are the metrics it goes into.
    near = {"rel": 1e-6}
    assert result.perplexity_reference == pytest.approx(2.0, **near)
    assert result.perplexity == pytest.approx(1 / math.sqrt(0.75 * 0.25), **near)
    assert result.kl == pytest.approx(2 * row / 3, **near)
    assert result.kl_max == pytest.approx(row, **near)
    assert result.kl_median == pytest.approx(row, **near)  # of row, row and 0
    assert result.max_abs_diff == pytest.approx(math.log(3), **near)
    assert result.max_rel_diff == math.inf  # the reference's logits are all 0
    assert (result.positions, result.predictions) == (3, 2)
    assert result.top1 == 1.0  # argmax of a tie is the first token


def test_kl_is_of_the_reference_against_the_candidate() -> None:
    result = compare(bigram(LEANING), bigram(EVEN), [np.array([0, 0])])
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert result.kl == pytest.approx(want, rel=1e-6)
    assert result.max_rel_diff == pytest.approx(1.0, rel=1e-6)


def test_windows_weigh_by_their_tokens() -> None:
    windows = [np.array([0, 0, 0, 0, 0]), np.array([0, 1])]
    result = compare(bigram(EVEN), bigram(LEANING), windows)
    nll = -(4 * math.log(0.75) + math.log(0.25)) / 5
    assert result.perplexity == pytest.approx(math.exp(nll), rel=1e-6)
    assert perplexity(bigram(LEANING), windows) == pytest.approx(math.exp(nll), rel=1e-6)


def test_top1() -> None:
    flipped = [[0.0, 1.0], [0.0, 1.0]]
    straight = [[1.0, 0.0], [0.0, 1.0]]
    result = compare(bigram(straight), bigram(flipped), [np.array([0, 0, 0, 1])])
    assert result.top1 == 0.25


def test_a_model_against_itself_is_exactly_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_decoder(DEMO, threads=1)
    windows = first_windows(DEMO / "heldout.txt", DEMO, count=3, length=100)
    result = compare(decoder, decoder, windows)
    assert (result.kl, result.kl_max, result.max_abs_diff, result.max_rel_diff) == (0, 0, 0, 0)
    assert result.top1 == 1.0
    assert result.perplexity == result.perplexity_reference == perplexity(decoder, windows)
    assert (result.positions, result.predictions) == (300, 297)
    # In blocks of 7 rows (of 2048 logits) instead of one: sums in another order, so within
    # 300 roundings of 2^-53.
    monkeypatch.setattr(window_metrics, "_BLOCK", 7 * 2048)
    assert compare(decoder, decoder, windows).perplexity == pytest.approx(
        result.perplexity, rel=300 * 2.0**-53
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_not_a_number_is_never_averaged(value: str) -> None:
    # exp(1000) overflows to infinity, and infinity - infinity is NaN.
    last = "Identity(e)" if value == "inf" else "Sub(e, e)"
    text = f"""m (int64[B, S] input_ids) => (float[B, S, 2] logits)
      <float[2, 2] t = {{0, 0, 0, 1000}}>
      {{ g = Gather(t, input_ids) e = Exp(g) logits = {last} }}"""
    bad = Decoder(session(text))
    windows = [np.array([0, 0]), np.array([0, 1, 0])]
    message = "on window 2 gave 1 logits that are NaN or infinite, first at position 1"
    with pytest.raises(FptqError, match=f"the model {message}"):
        compare(bigram(EVEN), bad, windows)
    with pytest.raises(FptqError, match=f"the reference model {message}"):
        compare(bad, bigram(EVEN), windows)
    with pytest.raises(FptqError, match=f"the model {message}"):
        perplexity(bad, windows)


def test_masked_tokens_do_not_spoil_the_mean() -> None:
    # Log(0) = -infinity: how some models mask tokens that are only padding.
    text = """m (int64[B, S] input_ids) => (float[B, S, 3] logits)
      <float[1, 3] t = {1, 3, 0}, int64 z = {0}>
      { i = Mul(input_ids, z) g = Gather(t, i) logits = Log(g) }"""
    masked = Decoder(session(text))
    result = compare(masked, masked, [np.array([0, 1])])
    assert (result.kl, result.max_abs_diff) == (0, 0)
    assert result.perplexity == pytest.approx(4 / 3, rel=1e-6)


def test_nothing_to_evaluate_on() -> None:
    for windows in ([], [np.array([0])]):
        with pytest.raises(FptqError, match="nothing to evaluate on"):
            perplexity(bigram(EVEN), windows)
        with pytest.raises(FptqError, match="nothing to evaluate on"):
            compare(bigram(EVEN), bigram(EVEN), windows)


def test_models_that_cannot_be_compared() -> None:
    wide = [[0.0, 0.0, 0.0]] * 2
    with pytest.raises(FptqError, match="logits 2 and 3 wide"):
        compare(bigram(EVEN), bigram(wide), [np.array([0, 1])])
    last = Decoder(
        session("""m (int64[B, S] input_ids) => (float[B, one, 2] logits)
          <float[2, 2] t = {0, 0, 0, 0}, int64[1] a = {-1}, int64[1] e = {9}, int64[1] x = {1}>
          { g = Gather(t, input_ids) logits = Slice(g, a, e, x) }""")
    )
    with pytest.raises(FptqError, match="logits for every position"):
        perplexity(last, [np.array([0, 1])])


def scaled(by: float) -> ort.InferenceSession:
    return session(f"""m (float[N] x) => (float[N] y, float[N] z)
      <float s = {{{by}}}> {{ y = Mul(x, s) z = Identity(x) }}""")


def test_differences_of_plain_outputs_by_hand() -> None:
    samples = [{"x": np.array([3, -4], np.float32)}, {"x": np.array([8], np.float32)}]
    y, z = compare_outputs(scaled(1.0), scaled(1.5), samples)
    # Differences 1.5, -2, 4; powers of two and their sums, so exact.
    assert (y.name, y.max_abs_diff, y.max_rel_diff, y.elements) == ("y", 4.0, 0.5, 3)
    assert y.sqnr_db == pytest.approx(10 * math.log10(89 / 22.25), rel=1e-12)
    assert (z.max_abs_diff, z.max_rel_diff, z.sqnr_db) == (0.0, 0.0, math.inf)
    assert [d.name for d in compare_outputs(scaled(1), scaled(1), samples, ["z"])] == ["z"]


def test_errors_of_tokens_by_hand() -> None:
    """Rows of the last axis: one huge and exact, one lost, one at half, one without a reference."""
    a = np.array([[[3000, 4000], [3, 4]], [[0, -2], [0, 0]]], np.float32)
    b = np.array([[[3000, 4000], [0, 0]], [[0, -3], [1, 1]]], np.float32)
    np.testing.assert_allclose(token_errors(a, b), [0, 1, 0.5], rtol=1e-12)
    assert token_errors(np.float32(2), np.float32(3)).tolist() == [0.5]
    assert token_errors(np.zeros((2, 0)), np.zeros((2, 0))).shape == (0,)
    masked = np.array([[1, -np.inf]], np.float32)
    assert token_errors(masked, masked).tolist() == [0]
    samples = [{"x": np.array([3, -4], np.float32)}, {"x": np.array([8], np.float32)}]
    y, z = compare_outputs(scaled(1.0), scaled(1.5), samples)
    assert (y.token_error_mean, y.token_error_median, y.token_error_worst) == (0.5, 0.5, 0.5)
    assert (z.token_error_mean, z.token_error_median, z.token_error_worst) == (0, 0, 0)


def test_plain_outputs_with_nan_or_nothing_at_all() -> None:
    with pytest.raises(FptqError, match="nothing to evaluate on"):
        compare_outputs(scaled(1), scaled(1), [])
    nan = {"x": np.array([1, np.nan], np.float32)}
    with pytest.raises(FptqError, match="gave NaN in output y"):
        compare_outputs(scaled(1), scaled(1), [nan])
    with pytest.raises(FptqError, match="could not run the reference model on sample 1"):
        compare_outputs(scaled(1), scaled(1), [{"x": np.zeros((1, 1), np.float32)}])


def accuracy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks/accuracy.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}  # works uninstalled, too
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
    )


@pytest.mark.process
def test_the_accuracy_script(tmp_path: Path) -> None:
    report = tmp_path / "accuracy.json"
    text = DEMO / "heldout.txt"
    size = ("--windows", 2, "--length", 64, "--threads", 1)
    done = accuracy(DEMO, DEMO, "--text", text, *size, "--json", report)
    assert done.returncode == 0, done.stderr
    models = json.loads(report.read_text())["models"]
    windows = first_windows(text, DEMO, count=2, length=64)
    want = perplexity(open_decoder(DEMO, threads=1), windows)
    assert models[0] == {"model": "tinystories-7m", "perplexity": want}
    assert (models[1]["perplexity"], models[1]["kl"], models[1]["top1"]) == (want, 0, 1)
    assert f"| tinystories-7m | {want:.4f} | 0.00000 | 1.0000 |" in done.stdout.splitlines()
    missing = accuracy(tmp_path / "nothing", "--text", text)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no such file or folder")
    assert len(missing.stderr.splitlines()) == 1


def test_large_logits_do_not_overflow() -> None:
    sure, wrong = bigram([[3e38, 0.0], [0.0, 0.0]]), bigram([[-3e38, 0.0], [0.0, 0.0]])
    result = compare(sure, wrong, [np.array([0, 0])])
    assert result.perplexity_reference == 1.0
    assert result.kl == pytest.approx(3e38, rel=1e-6)  # float32's 3e38
    assert result.perplexity == math.inf


def test_equal_infinities_do_not_hide_a_difference() -> None:
    sample = {"x": np.array([1, -2, math.inf], np.float32)}
    same, other = scaled(1), scaled(2)
    assert all(item.max_abs_diff == 0 for item in compare_outputs(same, same, [sample]))
    assert any(item.max_abs_diff > 0 for item in compare_outputs(same, other, [sample]))


def test_a_token_without_a_logit() -> None:
    with pytest.raises(FptqError, match="the model on window 1 has logits for 2 tokens, but"):
        perplexity(bigram([[0.0, 0.0]] * 3), [np.array([0, 2])])


def test_a_graph_that_demands_more_tokens_is_padded() -> None:
    """What follows does not change a causal model's earlier logits; the padding is not counted."""
    windows = [np.array([0, 1, 0]), np.array([1, 0])]
    loose = compare(bigram(EVEN), bigram(LEANING), windows)
    assert compare(bigram(EVEN, "1, 4"), bigram(LEANING, "1, 4"), windows) == loose
    with pytest.raises(FptqError, match="exactly 2 tokens at a time, not 3"):
        perplexity(bigram(EVEN, "1, 2"), windows)


def last_bigram(rows: list[list[float]]) -> Decoder:
    """The same model with logits of the last token alone, as prune_lm_head exports have."""
    text = bigram_text(rows).replace("[B, S, 2] logits", "[B, 1, 2] logits")
    text = text.replace(
        "logits = Gather(t, input_ids)",
        "from = Constant<value_ints = [-1]>() to = Constant<value_ints = [2147483647]>()"
        " along = Constant<value_ints = [1]>()"
        " last = Slice(input_ids, from, to, along) logits = Gather(t, last)",
    )
    return Decoder(session(text))


def test_models_with_logits_of_the_last_token_alone() -> None:
    """One position of each window: after all tokens but the last, which is what comes next."""
    windows = [np.array([1, 0, 0]), np.array([0]), np.array([0, 0, 1]), np.array([1, 1, 0])]
    result = compare(last_bigram(EVEN), last_bigram(LEANING), windows)
    assert (result.positions, result.predictions, result.last_only) == (3, 3, True)
    row = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # KL at id 0; id 1 has none
    assert result.kl == pytest.approx(2 * row / 3, rel=1e-6)
    nll = -(math.log(0.75) + math.log(0.25) + math.log(0.5)) / 3
    assert result.perplexity == pytest.approx(math.exp(nll), rel=1e-6)
    assert result.perplexity_reference == pytest.approx(2.0, rel=1e-6)
    assert not compare(bigram(EVEN), bigram(LEANING), windows).last_only


def test_a_candidate_that_gives_more_or_less_than_the_reference_is_refused() -> None:
    window = [np.array([0, 1, 0])]
    with pytest.raises(FptqError, match=r"the model on window 1 gave logits \[1, 2, 2\] where"):
        compare(last_bigram(EVEN), bigram(EVEN), window)
    with pytest.raises(FptqError, match="export the model with logits for every position"):
        compare(bigram(EVEN), last_bigram(EVEN), window)
