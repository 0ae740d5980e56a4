"""W8A8 and SmoothQuant come from statistics alone: nothing runs, no sample is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import MODEL
from support.sequential_runs import Setting

from fptq_onnx.calibration import open_samples
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion import quantize_model as conversion_steps
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.numerics.token_sizes import count_sizes
from fptq_onnx.quantization.from_statistics import needs_tokens, quantize_from_statistics
from fptq_onnx.runtime import run_context
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.recipes import find_recipe
from fptq_onnx.scheme.weight_store import WeightStore

PLAIN = ("w4a8-static", "w8a8", "smoothquant", "paper")


@pytest.mark.parametrize("equalization", ["none", "smoothquant", "lae"])
@pytest.mark.parametrize("scheme", ["static", "per_token", "thresholds"])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_decides_and_rounds_as_sequential_quantization_does(
    rng: np.random.Generator, tmp_path: Path, equalization: str, scheme: str, bits: int
) -> None:
    setting = Setting(rng, tmp_path)
    config = Config(
        weight_method="rtn",
        equalization=equalization,
        activation_scheme=scheme,
        weight_bits=bits,
        block_size=32,
    )
    assert not config.needs_sequential
    by_tokens, by_sequence = setting.solve(config)
    store = WeightStore(tmp_path / "plain")
    found = quantize_from_statistics(setting.task(config), store)
    assert found.plan == by_tokens.plan
    assert found.scales.keys() == by_tokens.scales.keys()
    assert all((found.scales[name] == by_tokens.scales[name]).all() for name in found.scales)
    if equalization == "smoothquant":
        assert len(found.scales) == 2  # a norm, and columns of the linear before
    for row in found.plan.linears:
        mine, theirs = store.get(row.name), by_sequence.get(row.name)
        assert mine.codes.tobytes() == theirs.codes.tobytes()
        assert mine.scales.tobytes() == theirs.scales.tobytes()


def test_what_needs_sequential_quantization() -> None:
    assert (
        not any(find_recipe(name).config().needs_sequential for name in PLAIN)
        and not PAPER.needs_sequential
    )
    for changed in (
        {"weight_method": "mse"},
        {"equalization": "search"},
        {"activation_scheme": "measured"},
        {"target_bits": 5.0},
    ):
        assert replace(find_recipe("w8a8").config(), **changed).needs_sequential  # type: ignore[arg-type]


def test_massive_tokens_need_token_samples_where_smoothing_is_fixed(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    setting = Setting(rng, tmp_path)
    plain = find_recipe("smoothquant").config()
    task = setting.task(plain)
    assert not needs_tokens(task)
    name = setting.scan.linears[0].x.name or ""
    channel = setting.stats.ranges[name]
    sizes = count_sizes(np.full(100, channel.tensor_absmax / 1e4))
    ranges = {**setting.stats.ranges, name: replace(channel, sizes=sizes)}
    massive = replace(task, stats=replace(setting.stats, ranges=ranges))
    assert needs_tokens(massive)
    assert not needs_tokens(replace(massive, as_planned=True))
    assert not needs_tokens(replace(massive, config=replace(plain, equalization="none")))
    top = channel.tensor_absmax
    assert needs_tokens(replace(massive, config=replace(PAPER, v0=top / 2, v1=top * 2)))
    assert not needs_tokens(replace(massive, config=replace(PAPER, v0=top / 3, v1=top / 2)))


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the demo model, measured once."""
    path = tmp_path_factory.mktemp("stats") / "stats.npz"
    convert(MODEL, samples=Samples("random", 4, 64), stats=[path], dry_run=True, config=PAPER,
            threads=1)  # fmt: skip
    return path


@pytest.mark.parametrize("name", PLAIN)
def test_with_statistics_nothing_is_written_and_nothing_walked(
    stats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*given: Any, **more: Any) -> None:
        raise AssertionError("not needed")

    monkeypatch.setattr(open_samples, "write_windows", never)
    monkeypatch.setattr(conversion_steps, "quantize_within_budget", never)
    recipe = find_recipe(name)
    done = convert(
        MODEL, tmp_path / "out", targets=(recipe.target,), samples=Samples(max_samples=4),
        config=recipe.config(), stats=[stats], verify_samples=0, threads=1,
    )  # fmt: skip
    assert done.reports[recipe.target].schemes["static"] == 31 - 6 * (name == "paper")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_method": "rtn", "activation_scheme": "static", "equalization": "none"}],
    ids=["sequential", "check"],
)
def test_samples_that_are_needed_are_written_as_asked(
    stats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Once, with the threads asked for and with progress, also where statistics are given."""
    threads: list[int] = []
    shown: list[tuple[str, bool]] = []
    opened, tracker = open_samples.open_session_in_memory, run_context.tracker

    def opening(*given: Any, **more: Any) -> Any:
        threads.append(more["threads"])
        return opened(*given, **more)

    def tracking(what: str, quiet: bool) -> Any:
        shown.append((what, quiet))
        return tracker(what, True)

    monkeypatch.setattr(open_samples, "open_session_in_memory", opening)
    monkeypatch.setattr(run_context, "tracker", tracking)
    convert(
        MODEL, tmp_path / "out", samples=Samples(max_samples=2, max_seq_len=32),
        config=Config(**settings), stats=ActivationStats.load(stats), verify_samples=1, threads=2,
        quiet=False,
    )  # fmt: skip
    assert threads == [2] and shown.count(("writing samples", False)) == 1
    assert not any(quiet for _, quiet in shown)
