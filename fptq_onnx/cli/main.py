"""The command line: arguments in, lines out; every decision is made elsewhere."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fptq_onnx.cli.bench import add_bench_options, run_bench
from fptq_onnx.cli.compare import add_compare_options, run_compare
from fptq_onnx.cli.console import Printer, discard_output, open_missing_streams
from fptq_onnx.cli.eval import add_eval_options, run_eval
from fptq_onnx.cli.export import add_export_options, add_exporter_option, onnx_of, run_export
from fptq_onnx.cli.old_flags import add_old_flag, old_name_notes, rename_values
from fptq_onnx.cli.package import add_package_options, run_package
from fptq_onnx.cli.quantization_options import add_planning, planning, samples_of, unused_in_float16
from fptq_onnx.cli.run import add_run_options, run_command
from fptq_onnx.cli.serve import add_serve_options, run_serve
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.model_choice import add_file_option, choose_file
from fptq_onnx.runtime.thread_count import check_threads
from fptq_onnx.version import __version__

INTERRUPTED = 130
WRONG = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a user's error, 130 when interrupted."""
    closed = open_missing_streams()
    options = build_parser().parse_args(arguments)
    rename_values(options)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        if closed and run in _TELLING:
            raise FptqError("standard output is closed, and what was asked for goes there: open it")
        for threads in _list(getattr(options, "threads", 0)):
            check_threads(threads)
        choose_file(options)
        run(options)
        sys.stdout.flush()
    except FptqError as error:
        print(f"fptq-onnx: error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        written = "" if run in (run_command, run_serve) else ", nothing was written"
        print(f"fptq-onnx: interrupted{written}", file=sys.stderr)
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
    if not getattr(options, "quiet", False):  # an error is one line, so notes come where none did
        for line in old_name_notes(options):
            print(f"fptq-onnx: note: {line}", file=sys.stderr)
    return 0


def _list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def entry_point() -> NoReturn:
    """What the installed `fptq-onnx` command calls."""
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


class _Parser(argparse.ArgumentParser):
    """One line for a wrong option, as for every other mistake; options before or after the rest."""

    _mixing = False

    def parse_known_args(  # type: ignore[override]  # the base has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As the base, but PROMPT may come after options, though it may also be left out."""
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True  # what is called here calls this again
        try:
            options, left = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
        if left:  # told by the command, which knows its options
            self.error(f"unrecognized arguments: {' '.join(left)}{self._meant(left[0])}")
        return options, left

    def _meant(self, text: str) -> str:
        """The option that a misspelt one is nearest to; '' where none is near."""
        import difflib

        known = [
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
        ]
        near = difflib.get_close_matches(text.partition("=")[0], known, 1)
        return f" (did you mean {near[0]}?)" if near else ""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"fptq-onnx: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; docs/cli.md is made from it."""
    parser = _Parser(
        prog="fptq-onnx",
        description="Exported ONNX language models to 4-bit weights and 8-bit activations (W4A8).",
    )
    parser.add_argument("--version", action="version", version=f"fptq-onnx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="convert a model to W4A8")
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "model",
        type=Path,
        help="a .onnx file or its folder; or a Hugging Face folder, exported first",
    )
    convert.add_argument("-o", "--output", type=Path, help="folder to write (MODEL-w4a8)")
    convert.add_argument(
        "--target",
        help="custom, matmulnbits, qdq, several with commas, or all (the recipe's own: custom)",
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
        "--no-fuse",
        action="store_true",
        help="one op per linear, attention left to ONNX Runtime (custom)",
    )
    as_exported = convert.add_argument(
        "--no-graph-optimization",
        action="store_true",
        help="leave attention and norms as exported",
    )
    add_old_flag(convert, "--no-clean-up", as_exported)
    convert.add_argument(
        "--max-kl", type=float, metavar="NATS", help="write nothing if the KL is larger"
    )
    convert.add_argument(
        "--min-top1", type=float, metavar="SHARE", help="write nothing if fewer predictions agree"
    )
    add_exporter_option(convert)
    add_planning(convert)

    export = commands.add_parser("export", help="from a Hugging Face model to ONNX")
    export.set_defaults(run=run_export)
    add_export_options(export)

    inspect = commands.add_parser("inspect", help="show linears, ranges and schemes")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("model", type=Path, help="a float model, or a folder convert wrote")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument(
        "--errors", action="store_true", help="SQNR of each linear, worst first: runs the model"
    )
    add_planning(inspect)

    run = commands.add_parser("run", help="generate text with a model")
    run.set_defaults(run=run_command)
    add_run_options(run)

    serve = commands.add_parser("serve", help="answer requests over HTTP, as OpenAI's API")
    serve.set_defaults(run=run_serve)
    add_serve_options(serve)

    evaluate = commands.add_parser("eval", help="perplexity, KL and LAMBADA accuracy of a model")
    evaluate.set_defaults(run=run_eval)
    add_eval_options(evaluate)

    compared = commands.add_parser("compare", help="all recipes on a model, in one table")
    compared.set_defaults(run=run_compare)
    add_compare_options(compared)

    bench = commands.add_parser("bench", help="load time, memory and speed, beside other models")
    bench.set_defaults(run=run_bench)
    add_bench_options(bench)

    package = commands.add_parser("package", help="for onnxruntime-genai, Triton or the edge")
    package.set_defaults(run=run_package)
    add_package_options(package)

    for command in (convert, inspect, run, serve, evaluate, compared, bench, package):
        add_file_option(command)

    library = commands.add_parser("library", help="print the path of the custom-op library")
    library.set_defaults(run=_library)
    return parser


def _convert(options: argparse.Namespace) -> None:
    from fptq_onnx.conversion.float16 import convert_float16
    from fptq_onnx.conversion.pipeline import Conversion, convert, default_output
    from fptq_onnx.conversion.quality_gate import Gate
    from fptq_onnx.conversion.report import plan_table
    from fptq_onnx.graph.linears.roles import find_blocks
    from fptq_onnx.scheme.config import TARGETS
    from fptq_onnx.scheme.recipes import FLOAT16, find_recipe

    recipe = find_recipe(options.recipe)
    targets = (options.target or recipe.target).split(",")
    say = Printer()
    common: dict[str, Any] = {
        "overwrite": options.overwrite,
        "verify_samples": options.verify_samples,
        "gate": Gate(options.max_kl, options.min_top1),
        "say": say,
    }
    output = options.output or default_output(options.given)
    half = recipe.name == FLOAT16
    unused = unused_in_float16(options) if half else []
    if unused:
        raise FptqError(
            f"--recipe fp16 only changes the type of floats: leave {', '.join(unused)} out"
        )
    quantize, fuse = not options.equalize_only, not options.no_fuse
    optimize = not options.no_graph_optimization
    decisions = (
        {} if half else planning(options, quantize=quantize, fuse=fuse, graph_optimization=optimize)
    )
    with onnx_of(options, output, say=say) as model:
        if half:
            convert_float16(
                model, output, samples=samples_of(options), threads=options.threads,
                quiet=options.quiet, **common,
            )  # fmt: skip
            say(f"output       {output} ({FLOAT16})")
            return
        result: Conversion = convert(
            model,
            output,
            targets=TARGETS if targets == ["all"] else targets,
            dry_run=options.dry_run,
            **common,
            **decisions,
        )
    if options.dry_run:
        for line in plan_table(result.plan, find_blocks(result.scan.linears)):
            say(line)
    for target, folder in result.folders.items():
        say(f"output       {folder} ({target})")
    if say.failure is not None:
        done = "the model was written, but" if result.folders else "the plan was made, but"
        raise FptqError(f"{done} standard output failed: {say.failure.strerror}")


def _inspect(options: argparse.Namespace) -> None:
    from fptq_onnx.conversion.inspect import inspect_errors, inspect_model

    show = inspect_errors if options.errors else inspect_model
    for line in show(options.model, as_json=options.json, **planning(options)):
        print(line)


def _library(options: argparse.Namespace) -> None:
    from fptq_onnx.runtime.native_library import library_path

    print(library_path())


# Of these commands what they print is what they are for.
_TELLING = (run_command, run_eval, run_compare, run_bench, _inspect, _library)


if __name__ == "__main__":
    entry_point()
