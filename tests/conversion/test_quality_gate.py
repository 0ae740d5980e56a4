"""The gate: a result that is worse than allowed leaves nothing behind."""

import pytest
from support.command_line import MODEL, RANDOM_FEW, command, refused

from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.verify import Verification
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.perplexity import Comparison


def result(kl: float, top1: float) -> Verification:
    return Verification(Comparison(10, 10, kl, kl, top1, 0, 0, 8, 7), (), 8, held_out=True)


@pytest.mark.parametrize(
    ("gate", "kl", "top1", "problem"),
    [
        (Gate(max_kl=0.01), 0.01, 0.0, None),
        (Gate(max_kl=0.01), 0.0101, 1.0, "KL 0.0101 is above --max-kl 0.01"),
        (Gate(max_kl=0.01), float("nan"), 1.0, "above --max-kl"),
        (Gate(min_top1=0.9), 9.0, 0.9, None),
        (Gate(min_top1=0.9), 0.0, 0.89999, "0.89999 is below --min-top1 0.9"),
        (Gate(0.01, 0.9), 0.02, 0.8, "above.*below"),
        (Gate(), 99.0, 0.0, None),
    ],
)
def test_limits(gate, kl, top1, problem):
    if problem is None:
        gate.check("custom", result(kl, top1))
    else:
        with pytest.raises(FptqError, match=problem):
            gate.check("custom", result(kl, top1))


def test_limits_that_make_no_sense_are_refused():
    for limits in ({"max_kl": -1}, {"max_kl": float("nan")}, {"min_top1": 95}, {"min_top1": -0.1}):
        with pytest.raises(FptqError, match="--m"):
            Gate(**limits)


def test_other_models_have_no_kl():
    with pytest.raises(FptqError, match="need a language model"):
        Gate(max_kl=1).check("custom", Verification(None, (), 8, held_out=False))


@pytest.mark.slow
def test_a_missed_gate_writes_nothing(tmp_path):
    arguments = ("convert", MODEL, "-o", tmp_path / "out", "--weight-method", "rtn", *RANDOM_FEW)
    refused(*arguments, "--max-kl", "1e-6", saying="nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_a_gate_needs_samples(tmp_path):
    arguments = ("-o", tmp_path / "out", "--max-kl", "1", "--verify-samples", "0")
    done = command("convert", MODEL, *arguments)
    assert done.returncode == 2 and "--verify-samples" in done.stderr


def test_a_gate_judges_by_samples_that_have_not_calibrated():
    seen = Verification(Comparison(10, 10, 0, 0, 1, 0, 0, 8, 7), (), 8, held_out=False)
    with pytest.raises(FptqError, match="calibration has not used"):
        Gate(max_kl=1).check("custom", seen)
    Gate().check("custom", seen)


def test_a_text_too_short_for_the_gate(tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time there was a little dog.")
    done = command(
        "convert", MODEL, "-o", tmp_path / "out", "--calibration", tmp_path / "short.txt",
        "--weight-method", "rtn", "--max-kl", "9",
    )  # fmt: skip
    assert done.returncode == 2 and "calibration has not used" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
