"""Convert a model with every recipe and measure them all against the original."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from fptq_onnx.benchmarking.benchmark import Speed, load_within, measure_speeds
from fptq_onnx.benchmarking.ort_quantizer import quantize_stock
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.float16 import convert_float16
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.conversion.provenance import files_size
from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.evaluate import Evaluation, evaluate_model
from fptq_onnx.evaluation.settings import EvalSettings
from fptq_onnx.model_io.finite_json import finite
from fptq_onnx.model_io.hf_config import find_model_file, read_special_ids
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.output_folder import atomic_folder, check_output
from fptq_onnx.runtime.thread_count import check_threads
from fptq_onnx.scheme.recipes import FLOAT16, find_recipe

ORIGINAL = "original"
STOCK_BLOCKS = (32, 128)


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    name: of the recipe, "original", or "stock-32" and "stock-128" for ONNX Runtime's own 4 bits.
    precision: of weights and activations.
    bits_per_weight: stored, of the linears.
    bytes: of the model's files.
    evaluation: perplexity, KL, top-1, last words; against the original but for the original.
    speed: medians over the rounds.
    """

    name: str
    precision: str
    bits_per_weight: float
    bytes: int
    evaluation: Evaluation
    speed: Speed


@dataclass(frozen=True)
class Comparison:
    """All rows, the original first, and how they were measured."""

    model: str
    data: str
    prefill: int
    decode: int
    threads: int
    rounds: int
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {"onnxruntime": onnxruntime.__version__, **asdict(self)}
        return {key: finite(value) for key, value in data.items()}


@dataclass(frozen=True)
class CompareSettings:
    """What is compared, and how.

    recipes: names of recipes.
    evaluation: data and windows.
    samples: to calibrate on, the same for all.
    prefill, decode: tokens to time; fewer where the context is shorter.
    rounds: of measuring speed, all models taking turns.
    threads: intra-op threads, 0 lets ONNX Runtime choose.
    """

    recipes: tuple[str, ...]
    evaluation: EvalSettings
    samples: Samples
    prefill: int = 128
    decode: int = 32
    rounds: int = 3
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            FptqError: an unknown recipe, or a number too small.
        """
        for name in self.recipes:
            find_recipe(name)
        if min(self.prefill, self.decode, self.rounds) < 1:
            raise FptqError("--prefill, --decode and --rounds must be at least 1")
        check_threads(self.threads)


def compare_models(
    model: Path,
    settings: CompareSettings,
    *,
    keep: Path | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Make every model, evaluate it, and time all of them in turn.

    Args:
        model: the float decoder, a .onnx file or a folder.
        settings: what and how.
        keep: a folder to leave the converted models in; by default they are removed.
        overwrite: replace `keep`.
        quiet: show no progress.
        say: receives a line per step.

    Raises:
        FptqError: the model or the data cannot be used, or a conversion fails.
    """
    original = evaluate_model(
        model, settings.evaluation, threads=settings.threads, quiet=quiet
    )  # before any conversion: data that are no use should not cost the time
    with ExitStack() as stack:
        if keep is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fptq-compare-")))
        else:
            check_output(model, keep, overwrite=overwrite)
            work = stack.enter_context(atomic_folder(keep))
        made = [_original(model)]
        made += [_made(name, model, work, settings, quiet, say) for name in settings.recipes]
        made += [_stock(block, model, work, say) for block in STOCK_BLOCKS]
        evaluations = [original]
        for item in made[1:]:
            say(f"evaluating   {item.name}")
            evaluations.append(
                evaluate_model(
                    item.path, settings.evaluation, reference=model,
                    threads=settings.threads, quiet=quiet,
                )
            )  # fmt: skip
        context = read_special_ids(find_model_file(model).parent).context_length
        load = load_within(context, settings.prefill, settings.decode)
        speeds = measure_speeds(
            [item.path for item in made], load,
            threads=settings.threads, rounds=settings.rounds, quiet=quiet,
        )  # fmt: skip
        rows = tuple(
            Row(item.name, item.precision, item.bits, item.bytes, evaluation, speed)
            for item, evaluation, speed in zip(made, evaluations, speeds, strict=True)
        )
    return Comparison(
        str(model), str(settings.evaluation.data), load.prefills[0], load.steps, settings.threads,
        settings.rounds, rows,
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    name: str
    precision: str
    path: Path
    bits: float
    bytes: int


def _original(model: Path) -> _Made:
    loaded = load_model(model)
    linears = loaded.linears.linears
    weights = sum(linear.k * linear.n for linear in linears)
    if not weights:
        raise FptqError(f"no linear layer found in {loaded.file}: nothing to compare")
    stored = sum(source.const_value.nbytes for linear in linears
                 for source in linear.weight.sources if source.const_value is not None)  # fmt: skip
    widest = max(linear.weight.dtype.itemsize for linear in linears)
    bits = 8 * stored / weights
    return _Made(ORIGINAL, f"W{bits:.0f}A{8 * widest:.0f}", model, bits, loaded.bytes)


def _made(
    name: str,
    model: Path,
    work: Path,
    settings: CompareSettings,
    quiet: bool,
    say: Callable[[str], None],
) -> _Made:
    recipe = find_recipe(name)
    say(f"converting   {name}: {recipe.summary}")
    output = work / name
    if name == FLOAT16:
        report = convert_float16(
            model, output, samples=settings.samples, verify_samples=0, quiet=quiet
        )
    else:
        result = convert(
            model, output, targets=(recipe.target,), samples=settings.samples,
            config=recipe.config(), verify_samples=0, threads=settings.threads, quiet=quiet,
        )  # fmt: skip
        report = result.reports[recipe.target]
    return _Made(name, recipe.precision, output, report.bits_per_weight, report.bytes_after)


def _stock(block: int, model: Path, work: Path, say: Callable[[str], None]) -> _Made:
    name = f"stock-{block}"
    say(f"converting   {name}: ONNX Runtime's own MatMulNBits, blocks of {block}")
    output = work / name
    output.mkdir()
    bits = quantize_stock(model, output, block)
    return _Made(name, "W4A8", output, bits, files_size(output))
