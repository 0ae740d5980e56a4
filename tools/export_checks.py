"""Checks of one export: linears against Hugging Face's modules, folds, numbers of the result."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from encoder_numbers import Numbers, decoder_numbers, encoder_numbers
from fold_reasons import GELU, POST_NORM, is_residual, reads_gelu
from module_tree import HEAD, OTHER, ModuleTree
from numpy.typing import NDArray

from fptq_onnx.benchmarking.ort_quantizer import quantize_stock
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import LinearScan, find_linears
from fptq_onnx.graph.linears.roles import Block, find_blocks
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.scheme.config import PAPER, TARGETS, Config
from fptq_onnx.scheme.recipes import find_recipe

PARTS = {"gate_up": ("gate", "up"), HEAD: (HEAD,), "o": ("o",)}
READ_A_NORM = ("q", "k", "v", "gate", "up", "fc1", OTHER, HEAD)
ENOUGH_KL, ENOUGH_FLOAT = 1.3, 1e-5


@dataclass
class Row:
    """What was found of one export.

    problems: what falls short, one sentence each.
    """

    name: str
    tree: ModuleTree
    linears: int = 0
    covered: int = 0
    others: dict[str, int] = field(default_factory=dict)
    norm_folds: tuple[int, int] = (0, 0)
    column_folds: tuple[int, int] = (0, 0)
    unfolded: dict[str, int] = field(default_factory=dict)
    float_difference: float = 0.0
    ours: Numbers | None = None
    stock: Numbers | None = None
    stock_by_us: bool = False
    problems: list[str] = field(default_factory=list)


def parts_of(role: str) -> tuple[str, ...]:
    """A role as the parts of modules it computes: 'qkv' is q, k and v."""
    return PARTS.get(role) or (tuple(role) if set(role) <= set("qkv") else (role,))


def check_coverage(row: Row, scan: LinearScan, blocks: dict[str, Block]) -> None:
    """Compare the linears found with the modules there are, by layer, part and shape."""
    wanted = row.tree.parts()
    seen: Counter[tuple[int | None, str]] = Counter()
    for linear in scan.linears:
        block = blocks[linear.name]
        keys = [(block.layer, part) for part in parts_of(block.role)]
        seen.update(keys)
        known = [wanted[key] for key in keys if key in wanted]
        if len(known) < len(keys):
            row.problems.append(f"{linear.path} ({block.role}) is no linear of the model")
            continue
        outputs = [n for _, n in known if n is not None]
        if len(outputs) == len(known) and sum(outputs) != linear.n:
            row.problems.append(f"{linear.path} has {linear.n} outputs, its module {sum(outputs)}")
        if any(k not in (None, linear.k) for k, _ in known):
            row.problems.append(f"{linear.path} has {linear.k} inputs, its module another number")
    row.problems += [f"{key} is there {n} times" for key, n in seen.items() if n > 1]
    row.linears, row.covered = len(scan.linears), row.tree.covered(set(seen))
    if row.covered != row.tree.count:
        missing = sorted(set(wanted) - set(seen), key=str)
        row.problems.append(f"not found: {missing}")
    row.others = dict(Counter(other.reason for other in scan.others))


def check_folds(row: Row, scan: LinearScan, blocks: dict[str, Block]) -> None:
    """Count inputs (not linears) that fold into a norm, or into columns of a linear before."""
    sites, columns = find_fold_sites(scan.linears), find_linear_sites(scan.linears)
    norms, others = {}, {}
    for linear in scan.linears:
        role = blocks[linear.name].role
        folds = isinstance(sites[linear.name], FoldSite)
        if set(parts_of(role)) <= set(READ_A_NORM):
            norms[linear.x.name] = folds
            if not folds and is_residual(linear.x):
                row.unfolded[POST_NORM] = row.unfolded.get(POST_NORM, 0) + 1
            elif not folds:
                row.problems.append(f"the input of {linear.path} does not fold: "
                                    f"{sites[linear.name]}")  # fmt: skip
            continue
        others[linear.x.name] = linear.name in columns
        if linear.name not in columns:
            gelu = role == "fc2" and reads_gelu(linear, scan)
            why = GELU if gelu else f"{role}: {sites[linear.name]}"
            row.unfolded[why] = row.unfolded.get(why, 0) + 1
    row.norm_folds = (sum(norms.values()), len(norms))
    row.column_folds = (sum(others.values()), len(others))


def check_numbers(
    row: Row, source: Path, windows: Sequence[NDArray[np.int64]], samples: Samples
) -> None:
    """Convert, and run everything beside the original."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work)
        # Every fold there is, by the paper's scales into norms, and by searched ones elsewhere.
        for number, config in enumerate((replace(PAPER, v0=0.0, v1=1e30), Config())):
            result = convert(
                source, out / f"float{number}", config=replace(config, quantize=False),
                samples=samples, verify_samples=2,
            )  # fmt: skip
            checked = result.reports["float"].verification
            for item in checked.get("outputs", [checked]):
                row.float_difference = max(row.float_difference, item["max_rel_diff"])
        convert(source, out / "all", targets=TARGETS, samples=samples, verify_samples=2)
        row.ours = _numbers(row, source, out / "all" / "custom", windows)
        (out / "stock").mkdir()
        quantize_stock(source, out / "stock", 128)
        nodes = ir.load(out / "stock" / "model.onnx").graph
        row.stock_by_us = sum(n.op_type == "MatMulNBits" for n in nodes) < row.linears
        if row.stock_by_us:  # it takes no Gemm: the same rounding by our emitter, of all linears
            config = find_recipe("w4a8-static").config(activation_scheme="per_token")
            convert(source, out / "rtn", targets=("matmulnbits",), config=config,
                    samples=samples, verify_samples=0)  # fmt: skip
        stock = out / ("rtn" if row.stock_by_us else "stock")
        row.stock = _numbers(row, source, stock, windows)
    if row.float_difference > ENOUGH_FLOAT:
        row.problems.append(f"the equalized float model is {row.float_difference:.1e} off")
    if row.ours.error > ENOUGH_KL * row.stock.error:
        what = "KL" if row.ours.top1 is not None else "the error"
        ratio = row.ours.error / row.stock.error
        row.problems.append(f"{what} is {ratio:.2f} times that of MatMulNBits")


def _numbers(
    row: Row, source: Path, candidate: Path, windows: Sequence[NDArray[np.int64]]
) -> Numbers:
    if row.tree.encoder:
        return encoder_numbers(source, candidate, windows)
    return decoder_numbers(open_decoder(source), open_decoder(candidate), windows)


def check_structure(source: Path, tree: ModuleTree) -> Row:
    """Everything that needs no run."""
    row = Row(source.name, tree)
    model = load_model(source).model
    normalize(model)
    scan = find_linears(model)
    blocks = find_blocks(scan.linears)
    check_coverage(row, scan, blocks)
    check_folds(row, scan, blocks)
    return row
