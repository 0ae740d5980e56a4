"""The command line: arguments in, lines out; every decision is made elsewhere."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fptq_onnx import __version__
from fptq_onnx.console import Printer, discard_output, open_missing_streams
from fptq_onnx.errors import FptqError
from fptq_onnx.eval_command import add_eval_options, run_eval

INTERRUPTED = 130
WRONG = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a user's error, 130 when interrupted."""
    open_missing_streams()
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except FptqError as error:
        print(f"fptq-onnx: error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("fptq-onnx: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()  # the reader (head, less) has seen enough
    except OSError as error:
        discard_output()
        what = error.filename or "standard output"
        print(f"fptq-onnx: error: {what}: {error.strerror}", file=sys.stderr)
        return WRONG
    except MemoryError:
        print("fptq-onnx: error: out of memory: close other programs", file=sys.stderr)
        return WRONG
    return 0


def entry_point() -> NoReturn:
    """What the installed `fptq-onnx` command calls."""
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


class _Parser(argparse.ArgumentParser):
    """One line for a wrong option, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"fptq-onnx: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fptq-onnx",
        description="Exported ONNX language models to 4-bit weights and 8-bit activations (W4A8).",
    )
    parser.add_argument("--version", action="version", version=f"fptq-onnx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="convert a model to W4A8")
    convert.set_defaults(run=_convert)
    convert.add_argument("model", type=Path, help="a .onnx file or a folder with model.onnx")
    convert.add_argument("-o", "--output", type=Path, help="folder to write (MODEL-w4a8)")
    convert.add_argument(
        "--target",
        default="custom",
        help="custom, matmulnbits, qdq, several with commas, or all (custom)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    convert.add_argument("--dry-run", action="store_true", help="stop after planning and print it")
    convert.add_argument(
        "--equalize-only", action="store_true", help="fold, but keep float weights: to check folds"
    )
    convert.add_argument(
        "--verify-samples", type=int, default=8, help="samples to compare on, 0 for none (8)"
    )
    convert.add_argument(
        "--no-fuse", action="store_true", help="one op per linear, whatever they share (custom)"
    )
    _add_planning(convert)

    inspect = commands.add_parser("inspect", help="show linears, ranges and schemes")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("model", type=Path, help="a float model, or a folder convert wrote")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    _add_planning(inspect)

    run = commands.add_parser("run", help="generate text with a model")
    run.set_defaults(run=_run)
    run.add_argument("model", type=Path, help="a model folder with tokenizer.json")
    run.add_argument("--prompt", required=True, help="text to go on from")
    run.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    run.add_argument("--max-new-tokens", type=int, default=128, help="tokens at most (128)")
    run.add_argument("--threads", type=int, default=0, help="threads, 0 for the default")

    evaluate = commands.add_parser("eval", help="perplexity, KL and last-word accuracy of a model")
    evaluate.set_defaults(run=run_eval)
    add_eval_options(evaluate)

    library = commands.add_parser("library", help="print the path of the custom-op library")
    library.set_defaults(run=_library)
    return parser


def _add_planning(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("calibration")
    data.add_argument(
        "--calibration",
        default="random",
        help="random (tokens of the vocabulary), a .txt, .jsonl or .npz file, a folder of .npz",
    )
    data.add_argument("--text-field", default="text", help="field of a .jsonl object (text)")
    data.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json or its folder, where the model has none"
    )
    data.add_argument("--max-samples", type=int, default=48, help="samples at most (48)")
    data.add_argument("--max-seq-len", type=int, default=256, help="tokens per sample (256)")
    data.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    data.add_argument(
        "--stats",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="statistics to use; one that does not exist yet is measured and saved; repeat the "
        "option to merge several",
    )
    plan = parser.add_argument_group("plan")
    # No defaults here: what is given can be told from what is not, and a plan has its own.
    plan.add_argument("--v0", type=float, help="static up to this range (15)")
    plan.add_argument("--v1", type=float, help="equalized up to this range (150)")
    plan.add_argument("--block-size", type=int, help="32, 64, 128, 256 or -1 per channel (128)")
    plan.add_argument(
        "--asymmetric", action="store_true", default=None, help="one zero point per group"
    )
    plan.add_argument(
        "--ignore", action="append", default=[], metavar="REGEX", help="keep matches in float"
    )
    plan.add_argument(
        "--w8", action="append", default=[], metavar="REGEX", help="8-bit weights for matches"
    )
    plan.add_argument("--weights", help="gptq, mse (clip search) or rtn (gptq)")
    plan.add_argument("--equalization", help="search, lae or smoothquant (search)")
    plan.add_argument(
        "--policy", help="measured errors or thresholds on ranges choose the scheme (measured)"
    )
    plan.add_argument(
        "--bits-budget", type=float, metavar="BITS", help="average; the rest goes to 8-bit linears"
    )
    plan.add_argument("--plan", type=Path, help="replay this plan.json")
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 for the default")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _convert(options: argparse.Namespace) -> None:
    from fptq_onnx.config import TARGETS
    from fptq_onnx.pipeline import Conversion, convert
    from fptq_onnx.report import plan_table

    targets = TARGETS if options.target == "all" else tuple(options.target.split(","))
    say = Printer()
    result: Conversion = convert(
        options.model,
        options.output,
        targets=targets,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        verify_samples=options.verify_samples,
        say=say,
        **_planning(options, quantize=not options.equalize_only, fuse=not options.no_fuse),
    )
    if options.dry_run:
        for line in plan_table(result.plan):
            say(line)
    for target, folder in result.folders.items():
        say(f"output       {folder} ({target})")
    if say.failure is not None:
        done = "the model was written, but" if result.folders else "the plan was made, but"
        raise FptqError(f"{done} standard output failed: {say.failure.strerror}")


def _inspect(options: argparse.Namespace) -> None:
    from fptq_onnx.inspection import inspect_model

    for line in inspect_model(options.model, as_json=options.json, **_planning(options)):
        print(line)


def _planning(
    options: argparse.Namespace, *, quantize: bool = True, fuse: bool = True
) -> dict[str, Any]:
    from fptq_onnx.config import Config
    from fptq_onnx.samples import Samples

    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("v0", options.v0),
            ("v1", options.v1),
            ("block_size", options.block_size),
            ("symmetric", None if options.asymmetric is None else False),
        )
        if value is not None
    }
    methods = {
        name: value
        for name in ("weights", "equalization", "policy", "bits_budget")
        if (value := getattr(options, name)) is not None
    }
    if options.plan is not None and given:
        names = ", ".join(
            "--asymmetric" if name == "symmetric" else f"--{name.replace('_', '-')}"
            for name in given
        )
        raise FptqError(f"{names} cannot be combined with --plan: edit the plan instead")
    return {
        "config": Config(
            **given,
            **methods,
            ignore=tuple(options.ignore),
            w8=tuple(options.w8),
            fuse=fuse,
            quantize=quantize,
        ),
        "samples": Samples(
            options.calibration,
            options.max_samples,
            options.max_seq_len,
            options.seed,
            options.text_field,
            options.tokenizer,
        ),
        "stats": tuple(options.stats),
        "plan": options.plan,
        "threads": options.threads,
        "quiet": options.quiet,
    }


def _run(options: argparse.Namespace) -> None:
    from fptq_onnx.generate import run_prompt
    from fptq_onnx.samples import folder_of_tokenizer

    if options.max_new_tokens < 1:
        raise FptqError(f"--max-new-tokens must be at least 1, got {options.max_new_tokens}")
    stats = run_prompt(
        options.model,
        options.prompt,
        options.max_new_tokens,
        sys.stdout,
        echo=True,
        tokenizer_folder=options.tokenizer and folder_of_tokenizer(options.tokenizer),
        threads=options.threads or None,
    )
    print()
    decode = stats.decode_tokens_per_second
    speed = "" if decode is None else f", {decode:.1f} tokens/s"
    print(
        f"{stats.prompt_tokens} prompt tokens in {stats.prefill_seconds:.3f} s, "
        f"{stats.tokens} new tokens{speed}",
        file=sys.stderr,
    )


def _library(options: argparse.Namespace) -> None:
    from fptq_onnx.runtime import library_path

    print(library_path())


if __name__ == "__main__":
    entry_point()
