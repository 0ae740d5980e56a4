"""Mixtures of experts with the default recipe: quantized linears may send tokens elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.experts import K, experts_model
from support.layer_groups import feeds_of, float_output, loaded
from support.saved_models import saved

from fptq_onnx.conversion.pipeline import Conversion, convert
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.choose_schemes import UNSEEN
from fptq_onnx.quantization.paired_activations import FLOAT, QUANTIZED, PairedActivations
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import PER_TOKEN, Plan

SAMPLES, TOKENS = 24, 60


def samples(rng: np.random.Generator, tokens: int = TOKENS) -> list[dict[str, np.ndarray]]:
    return [{"x": rng.standard_normal((tokens, K)).astype(np.float32)} for _ in range(SAMPLES)]


def converted(
    rng: np.random.Generator, folder: Path, config: Config | None = None, **options: object
) -> Conversion:
    file = saved(folder / "model", experts_model(rng, dead=bool(options.pop("dead", False))))
    return convert(
        file, folder / "out", samples=samples(rng), config=config,
        targets=("custom", "matmulnbits", "qdq"), overwrite=True, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def sqnr(done: Conversion, target: str) -> float:
    (output,) = done.reports[target].verification["outputs"]
    return float(output["sqnr_db"])


def test_the_default_recipe_converts_and_says_how(rng: np.random.Generator, tmp_path: Path) -> None:
    done = converted(rng, tmp_path)
    for target, report in done.reports.items():
        (note,) = (note for note in report.notes if "router" in note)
        assert note.startswith("a router picks the tokens of 6 linears (up0 is the first)")
        # Measured 15 dB; each row that goes to another expert loses all of what experts add.
        assert sqnr(done, target) > 12
    # Experts are measured on what they are sent, and fitted to it: no worse than nearest rounding.
    errors = {item.name: item.output_local.decibels for item in done.errors}
    nearest = converted(rng, tmp_path / "rtn", Config(weights="rtn"), measure_errors=True)
    for item in nearest.errors:
        assert errors[item.name] >= item.output_local.decibels - 1, item.name  # the router: inf


def test_streams_that_route_differently_go_on_with_their_own_rows(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """The quantized router takes the experts the other way round."""
    model = loaded(tmp_path / "model", experts_model(rng))
    linears = find_linears(model.model).linears
    streams = PairedActivations(model, linears, feeds_of(*samples(rng)[:3]), tmp_path / "values")
    seen, picked = {}, []
    for stage in streams.groups:
        streams.enter(stage)
        seen[stage.x] = [list(streams.rows(stage, stream)) for stream in (FLOAT, QUANTIZED)]
        outputs = {}
        for linear in stage.linears:
            pairs = [[float_output(linear, x) for x in batches] for batches in seen[stage.x]]
            if linear.name == "router":
                pairs[1] = [np.ascontiguousarray(y[:, ::-1]) for y in pairs[1]]
                picked = [[y.argmax(axis=1) for y in batches] for batches in pairs]
            outputs[linear.name] = zip(*pairs, strict=True)
        streams.leave(stage, outputs)
    for stream in (0, 1):
        for batch in range(3):
            for e in range(3):
                rows = seen["n"][stream][batch][picked[stream][batch] == e]
                np.testing.assert_array_equal(seen[f"rows{e}"][stream][batch], rows)
            assert seen["r"][stream][batch].shape == (TOKENS, K)
    assert [len(rows) for rows in seen["rows0"][0]] != [len(rows) for rows in seen["rows0"][1]]


@pytest.mark.parametrize(
    "config", [Config(), Config(weights="mse"), PAPER, Config(policy="static")]
)
def test_an_expert_that_gets_no_token(
    rng: np.random.Generator, tmp_path: Path, config: Config
) -> None:
    done = converted(rng, tmp_path, config, dead=True)
    entries = done.plan.by_name()
    for name in ("up2", "down2"):
        assert (entries[name].scheme, entries[name].reason) == (PER_TOKEN, UNSEEN)
        assert entries[name].equalization == "none" and entries[name].range == 0
    # Measured 11 to 15 dB; an expert that is broken gives NaN, or noise above the signal.
    assert all(sqnr(done, target) > 8 for target in done.reports)
    if config.needs_sequential:
        notes = " ".join(done.reports["custom"].notes)
        assert re.search(r"sends no token of the calibration samples to 2 linears \(up2", notes)


def test_a_plan_of_it_can_be_replayed(rng: np.random.Generator, tmp_path: Path) -> None:
    file = saved(tmp_path / "model", experts_model(rng, dead=True))
    some = samples(rng)
    first = convert(file, tmp_path / "out", samples=some)
    plan = Plan.load(tmp_path / "out" / "plan.json")
    again = convert(file, tmp_path / "again", samples=some, plan=plan)
    assert again.plan.linears == first.plan.linears
    asked = tmp_path / "asked.json"
    text = plan.to_json()
    part = text[text.index('"down2"') :]
    asked.write_text(text.replace(part, part.replace('"none"', '"balance:0.5"', 1)))
    with pytest.raises(FptqError, match="down2, which no token of the calibration samples reaches"):
        convert(file, tmp_path / "third", samples=some, plan=asked)


def test_few_tokens_of_which_some_reach_no_expert(rng: np.random.Generator, tmp_path: Path) -> None:
    """A sample that leaves an expert without a row is no NaN; statistics keep what others gave."""
    file = saved(tmp_path / "model", experts_model(rng))
    done = convert(
        file, tmp_path / "out", samples=samples(rng, tokens=2), stats=[tmp_path / "stats.npz"]
    )
    assert not any(entry.reason == UNSEEN for entry in done.plan.linears)
    stats = ActivationStats.load(tmp_path / "stats.npz")
    assert all(np.isfinite(channel.absmax).all() for channel in stats.ranges.values())
