"""Options that decide what a conversion does, shared by the commands that need a plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq_onnx.cli.old_flags import add_old_flag
from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    from fptq_onnx.calibration.samples import Samples


def add_planning(parser: argparse.ArgumentParser) -> None:
    """Add the options of calibration and plan."""
    data = parser.add_argument_group("calibration")
    data.add_argument(
        "--calibration",
        default="generated",
        help="generated (the model writes them), random (tokens of the vocabulary), a .txt, .jsonl "
        "or .npz file, or a folder of .npz (generated)",
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
    plan.add_argument(
        "--recipe",
        default="fptq",
        help="what to make: fptq (default), paper, w4a8-static, w8a8, smoothquant, gptq (W4A16) "
        "or fp16; the options below change parts of it",
    )
    # No defaults here: what is given can be told from what is not, and a plan has its own.
    plan.add_argument("--v0", type=float, help="static up to this range (15)")
    plan.add_argument("--v1", type=float, help="equalized up to this range (150)")
    plan.add_argument(
        "--block-size",
        "--group-size",
        type=int,
        help="input channels that share a weight scale: 32, 64, 128, 256, or -1 per channel (128)",
    )
    plan.add_argument(
        "--asymmetric", action="store_true", default=None, help="one zero point per group"
    )
    plan.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="WHICH",
        help="keep these in float: a regular expression on names, role:down, layer:0, layer:0-3",
    )
    int8 = plan.add_argument(
        "--int8-layers",
        action="append",
        default=[],
        metavar="WHICH",
        help="linears that get 8-bit weights, selected as for --ignore",
    )
    add_old_flag(plan, "--w8", int8)
    plan.add_argument(
        "--quantize-routers",
        action="store_true",
        default=None,
        help="quantize routers of experts and gates of recurrences too; those that --int8-layers "
        "selects get 8 bits (they stay in float)",
    )
    rounding = plan.add_argument(
        "--weight-method",
        metavar="METHOD",
        help="rounding of weights: rtn (round to nearest), mse (clip search) or gptq",
    )
    add_old_flag(plan, "--weights", rounding)
    plan.add_argument("--equalization", help="smoothing scales: search, lae, smoothquant or none")
    activations = plan.add_argument(
        "--activation-scheme",
        metavar="SCHEME",
        help="how activation schemes are chosen: measured (by error) or thresholds (by range); or "
        "one scheme for all: static, per_token, weight_only",
    )
    add_old_flag(plan, "--policy", activations)
    bits = plan.add_argument(
        "--target-bits",
        type=float,
        metavar="BITS",
        help="target average bits per weight, scales included; bits beyond 4 are spent on the most "
        "sensitive layers",
    )
    add_old_flag(plan, "--bits-budget", bits)
    plan.add_argument(
        "--embedding-bits",
        type=int,
        metavar="BITS",
        help="of token embeddings: 8, 4 (custom and matmulnbits), or 32 to leave them (8)",
    )
    plan.add_argument("--kv-cache", help="int8: keep keys and values in 8 bits; or float (float)")
    plan.add_argument("--plan", type=Path, help="replay this plan.json")
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 for the default")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


_IN_PLAN = ("activation_scheme", "equalization", "weight_method", "embedding_bits", "kv_cache")


def planning(
    options: argparse.Namespace,
    *,
    quantize: bool = True,
    fuse: bool = True,
    graph_optimization: bool = True,
) -> dict[str, Any]:
    """Arguments of `convert` from the options of `add_planning`.

    Raises:
        FptqError: options that cannot go together, or see Config and find_recipe.
    """
    from fptq_onnx.scheme.recipes import find_recipe

    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("v0", options.v0),
            ("v1", options.v1),
            ("block_size", options.block_size),
            ("symmetric", None if options.asymmetric is None else False),
            ("quantize_routers", options.quantize_routers),
        )
        if value is not None
    }
    methods = {
        name: value
        for name in (*_IN_PLAN, "target_bits")
        if (value := getattr(options, name)) is not None
    }
    decided = [*given, *(name for name in _IN_PLAN if name in methods)]
    if options.plan is not None and decided:
        names = ", ".join(
            "--asymmetric" if name == "symmetric" else f"--{name.replace('_', '-')}"
            for name in decided
        )
        raise FptqError(f"{names} cannot be combined with --plan: edit the plan instead")
    return {
        "config": find_recipe(options.recipe).config(
            **given,
            **methods,
            ignore=tuple(options.ignore),
            int8_layers=tuple(options.int8_layers),
            fuse=fuse,
            graph_optimization=graph_optimization,
            quantize=quantize,
        ),
        "samples": samples_of(options),
        "stats": tuple(options.stats),
        "plan": options.plan,
        "threads": options.threads,
        "quiet": options.quiet,
    }


def unused_in_float16(options: argparse.Namespace) -> list[str]:
    """The options given that a conversion to float16 has no use for."""
    names = (
        "target", "dry_run", "plan", "no_fuse", "no_graph_optimization",
        "equalize_only", "stats", "v0", "v1",
        "block_size", "asymmetric", "ignore", "int8_layers", "quantize_routers", "weight_method",
        "equalization", "activation_scheme", "target_bits", "embedding_bits", "kv_cache",
    )  # fmt: skip
    values = {name: getattr(options, name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, value in values.items()
        if value is not None and value is not False and value != []  # 0 was given
    ]


def samples_of(options: argparse.Namespace) -> Samples:
    """The calibration samples that the options name."""
    from fptq_onnx.calibration.samples import Samples

    return Samples(
        options.calibration,
        options.max_samples,
        options.max_seq_len,
        options.seed,
        options.text_field,
        options.tokenizer,
    )
