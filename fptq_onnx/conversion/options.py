"""What `convert` was asked for, checked before anything is read or measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.targets import FLOAT_TARGET
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.model_folder import hub_repository, model_name
from fptq_onnx.runtime.run_context import RunContext
from fptq_onnx.runtime.thread_count import check_threads
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import TARGETS, Config
from fptq_onnx.scheme.plan import Plan


@dataclass(frozen=True)
class Options:
    """One conversion, as asked for; see `convert` for what is not said here.

    model: a .onnx file or a folder with one.
    output: the folder to write.
    targets: any of config.TARGETS, each once.
    config: with what the plan decides for the whole model.
    plan: to replay; None to decide.
    gate: refuses results that are too far from the original.
    context: threads, progress and log; the log repeats no note.
    """

    model: Path
    output: Path
    targets: tuple[str, ...]
    samples: Samples
    config: Config
    stats: ActivationStats | Sequence[Path]
    plan: Plan | None
    overwrite: bool
    dry_run: bool
    measure_errors: bool
    verify_samples: int
    gate: Gate
    context: RunContext

    @property
    def written(self) -> tuple[str, ...]:
        """The targets to write: the float one alone where nothing is quantized."""
        return self.targets if self.config.quantize else (FLOAT_TARGET,)

    def folder_of(self, target: str, root: Path) -> Path:
        """Where a target goes: a folder of its own if there are several."""
        return root if len(self.written) == 1 else root / target


def check_options(
    model: str | Path,
    output: str | Path | None,
    *,
    targets: Sequence[str],
    samples: Samples | Any,
    config: Config | None,
    plan: Path | Plan | None,
    verify_samples: int,
    gate: Gate | None,
    threads: int,
    quiet: bool,
    say: Callable[[str], None],
    **rest: Any,
) -> Options:
    """The options of `convert` as one record; it says more of each.

    Args:
        model: a .onnx file or a folder with one.
        output: the folder to write; None for `default_output`.
        targets: any of config.TARGETS.
        samples: a Samples, or its `source`; None for what the model itself writes.
        config: None for the default.
        plan: to replay, or its file.
        verify_samples: samples to compare with the original on.
        gate: None refuses nothing.
        threads: intra-op threads.
        quiet: show no progress.
        say: receives lines for people.
        rest: fields of Options that are taken as they are.

    Raises:
        FptqError: options that make no sense, or not together; a plan that cannot be read.
    """
    config = config or Config()
    if not isinstance(samples, Samples):
        samples = Samples() if samples is None else Samples(samples)
    if verify_samples < 0:
        raise FptqError("--verify-samples must not be negative")
    check_threads(threads)
    gate = gate or Gate()
    if gate.closed and not verify_samples:
        raise FptqError("--max-kl and --min-top1 need samples to compare on: --verify-samples")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise FptqError(
            f"unknown target {', '.join(map(repr, unknown)) or '(none)'}: use one or more of "
            f"{', '.join(TARGETS)}"
        )
    if plan is not None:
        plan = plan if isinstance(plan, Plan) else Plan.load(plan)
        config = plan.applied(config)
    if "qdq" in targets and config.embedding_bits == 4:
        raise FptqError("standard ops have no lookup in 4 bits: --embedding-bits 8 for target qdq")
    return Options(
        model=Path(model),
        output=default_output(Path(model)) if output is None else Path(output),
        targets=tuple(dict.fromkeys(targets)),
        samples=samples,
        config=config,
        plan=plan,
        verify_samples=verify_samples,
        gate=gate,
        context=RunContext(threads, not quiet, notes_once(say)),
        **rest,
    )


def default_output(source: Path) -> Path:
    """`<folder>-w4a8` beside an input folder, `<stem>-w4a8` beside an input file.

    For a model in a hub cache, which is no place to write, `<name>-w4a8` in the current folder.
    """
    if hub_repository(source) is not None:
        return Path.cwd() / f"{model_name(source).split('/')[-1]}-w4a8"
    resolved = source.absolute()  # a link's neighbours are those of the link
    return resolved.parent / f"{resolved.name if source.is_dir() else resolved.stem}-w4a8"


def notes_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but for notes that were said before: targets have most of them in common."""
    said: set[str] = set()

    def line(text: str) -> None:
        if text.startswith("note "):
            if text in said:
                return
            said.add(text)
        say(text)

    return line
