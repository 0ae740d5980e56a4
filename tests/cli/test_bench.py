"""`fptq-onnx bench`: what it times is there, in turn, and ratios are of one round."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from support.command_line import MODEL, command

from fptq_onnx.benchmarking.benchmark import Result
from fptq_onnx.benchmarking.benchmark_table import bench_table
from fptq_onnx.benchmarking.worker import Load, Metrics, measure, read_load
from fptq_onnx.cli.bench import add_load_options, load_of

pytestmark = pytest.mark.process

FEW = ("--prefill", "8", "16", "--depth", "4", "--batch", "1", "2", "--steps", "2", "--rounds", "2",
       "--threads", "1")  # fmt: skip


def test_lengths_that_nobody_gave_fit_into_the_context() -> None:
    parser = argparse.ArgumentParser()
    add_load_options(parser)
    load = load_of(parser.parse_args([]), [MODEL])  # 256 tokens
    assert (load.prefills, load.depths) == ((128,), (128,))
    assert load_of(parser.parse_args(["--steps", "200"]), [MODEL]).longest() == 256
    given = parser.parse_args(["--prefill", "512", "--depth", "300"])
    assert load_of(given, [MODEL]).prefills == (512,)  # which is refused later, by name


def metrics(prefill: float, decode: float, load: float, peak: int) -> Metrics:
    return Metrics(load, {"8": prefill}, {"1x4": decode}, peak)


def test_a_model_beside_itself(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = command("bench", MODEL, "--vs", MODEL / "model.onnx", *FEW, "--json", file)
    assert done.returncode == 0, done.stderr
    for line in ("prefill 8", "prefill 16", "decode after 4", "batch 2", "load", "peak memory"):
        assert line in done.stdout
    found = json.loads(file.read_text())
    assert len(found["names"]) == len(set(found["names"])) == 2
    rounds = found["rounds"]["1"]
    assert len(rounds) == 2 and all(len(one) == 2 for one in rounds)
    for entry in (entry for one in rounds for entry in one):
        assert set(entry["prefill"]) == {"8", "16"} and set(entry["decode"]) == {"1x4", "2x4"}
        assert entry["load_seconds"] > 0 and entry["peak_bytes"] > 1 << 20
        assert min(*entry["prefill"].values(), *entry["decode"].values()) > 0
    assert {item["what"] for item in found["ratios"]} == {"prefill", "decode", "load", "memory"}


def test_ratios_are_medians_of_rounds() -> None:
    """The machine was three times slower in the second round: no ratio knows."""
    one = [metrics(300, 90, 1.0, 100), metrics(100, 30, 2.0, 400)]
    two = [metrics(100, 30, 3.0, 100), metrics(33.3, 10, 6.0, 400)]
    result = Result(("ours", "theirs"), (1,), {1: [one, two, one]})
    assert result.ratio((1, "prefill", "8"), 1) == pytest.approx(3, rel=1e-2)
    assert result.ratio((1, "decode", "1x4"), 1) == pytest.approx(3)
    assert result.ratio((1, "load", ""), 1) == pytest.approx(0.5)
    assert result.ratio((1, "memory", ""), 1) == pytest.approx(0.25)
    table = "\n".join(bench_table(result))
    assert "| 1 | decode after 4, tokens/s | 90.0 | 30.0 (3.00x) |" in table


def test_only_what_was_asked_for_is_run() -> None:
    calls: list[tuple[str, int, int]] = []
    load = Load((8, 16), (4,), (1, 2), steps=3, repeats=2)
    found = measure(
        load,
        load_seconds=0.5,
        prefill=lambda length: calls.append(("prefill", length, 0)),
        fill=lambda batch, depth: calls.append(("fill", batch, depth)),
        step=lambda batch: calls.append(("step", batch, 0)),
    )
    expected = [("prefill", 8, 0)] * 3 + [("prefill", 16, 0)] * 3
    for batch in (1, 2):
        expected += [("fill", batch, 4), *[("step", batch, 0)] * 4]
    assert calls == expected
    assert set(found.decode) == {"1x4", "2x4"}
    assert load.longest() == 16
    assert Load((8,), (30,), steps=3).longest() == 34


def test_a_load_survives_json() -> None:
    load = Load((8, 16), (4,), (1, 2), steps=3, repeats=2, threads=1)
    assert read_load(json.dumps(load.__dict__)) == load


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prefill", "0"), "must be at least 1"),
        (("--threads", "-1"), "--threads must be from 0"),
        (("--prefill", "100000"), "do not fit into the context"),
        (("--json", "no/such/folder.json"), "no folder"),
        (("--json", str(MODEL)), "is a folder"),
        (("--vs", "nothing-here"), "nothing-here"),
    ],
)
def test_refusals(options: tuple[str, ...], message: str) -> None:
    done = command("bench", MODEL, *options)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
