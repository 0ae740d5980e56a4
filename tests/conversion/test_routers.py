"""A router stays in float in every target and says so, unless it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from support.experts import K, experts_model
from support.saved_models import saved

from fptq_onnx.conversion.pipeline import Conversion, convert
from fptq_onnx.runtime import native_library as runtime
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import SKIP, Plan

TARGETS = ("custom", "matmulnbits", "qdq")
WHY = "stays in float: its output picks experts (ArgMax top)"


def samples(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"x": rng.standard_normal((60, K)).astype(np.float32)} for _ in range(8)]


def converted(
    rng: np.random.Generator, folder: Path, config: Config, **more: object
) -> tuple[Conversion, list[str]]:
    file = saved(folder / "model", experts_model(rng))
    lines: list[str] = []
    done = convert(
        file, folder / "out", samples=samples(rng), config=config, targets=TARGETS,
        overwrite=True, say=lines.append, **more,
    )  # type: ignore[arg-type]  # fmt: skip
    return done, lines


def picks(file: Path, x: np.ndarray) -> np.ndarray:
    """The expert of each token: the router's choice as the file computes it."""
    model = ir.load(file)
    model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "top"))
    ir.save(model, file.with_name("with_picks.onnx"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime.register(options)
    session = ort.InferenceSession(
        file.with_name("with_picks.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["top"], {"x": x})[0])


@pytest.mark.parametrize("config", [Config(), PAPER])
def test_every_token_goes_where_it_went(
    rng: np.random.Generator, tmp_path: Path, config: Config
) -> None:
    done, lines = converted(rng, tmp_path, config)
    x = rng.standard_normal((2000, K)).astype(np.float32)
    before = picks(tmp_path / "model" / "model.onnx", x)
    for target, folder in done.folders.items():
        moved = (picks(folder / "model.onnx", x) != before).mean()
        assert moved < 0.001, target  # of float32 sums in another order at most
    entry = done.plan.by_name()["router"]
    assert (entry.scheme, entry.reason) == (SKIP, WHY)
    assert any(line.strip() == f"1 in float, such as router: {WHY}" for line in lines)
    # 64 x 3 floats of 32 bits are in the average.
    quantized = sum(e.k * e.n for e in done.plan.linears if e.scheme != SKIP)
    least = (4.125 * quantized + 32 * K * 3) / (quantized + K * 3)
    assert all(report.bits_per_weight >= least for report in done.reports.values())


def test_asked_for_it_is_quantized(rng: np.random.Generator, tmp_path: Path) -> None:
    file = saved(tmp_path / "model", experts_model(rng))
    some = samples(rng)

    def plan_of(config: Config, plan: Plan | None = None) -> Plan:
        return convert(file, samples=some, config=config, plan=plan, dry_run=True).plan

    default = plan_of(Config())
    assert default.by_name()["router"].scheme == SKIP
    wide = plan_of(Config(int8_layers=("^router$",))).by_name()["router"]
    assert wide.scheme != SKIP and wide.weight_bits == 8
    assert plan_of(Config(quantize_routers=True)).by_name()["router"].scheme != SKIP
    both = Config(quantize_routers=True, ignore=("^router$",))
    assert "--ignore" in plan_of(both).by_name()["router"].reason
    edited = replace(
        default,
        linears=tuple(
            replace(entry, scheme="per_token") if entry.name == "router" else entry
            for entry in default.linears
        ),
    )
    assert plan_of(Config(), edited).by_name()["router"].scheme == "per_token"
