"""Where bits beyond the plan's go: zero points, smaller blocks, 8-bit weights.

How much a group (linears that share an input) matters is measured: the float model with only the
layer group's weights rounded as the conversion rounds them, against the float model, KL over some
windows. What each way of spending bits takes off is the ratio of output errors on the group's own
inputs. The step that takes off most per bit is taken again and again until the budget
is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.perplexity import compare
from fptq_onnx.graph.folding.linear_sites import column_scales
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.graph.linears.linears import Linear, LinearScan, find_linears
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.numerics.group_weights import PER_CHANNEL, dequantize, group_count
from fptq_onnx.numerics.panels import PANEL_COLUMNS, STEP_CHANNELS, panel_count, step_count
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import decoder_io_of
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.scheme.plan import FLOAT, LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

_BLOCKS = (32, 64, 128, 256)

Tracker = Callable[[Iterable[list[Linear]], int], Iterator[list[Linear]]]


def planned_bits(entry: LinearPlan) -> float:
    """Bits of a linear's weights as our op stores them, scales and zero points included.

    Floats count as 32, scales as 16, though those of a linear with one out of the range of float16
    take 32; channels and columns are padded to whole panels.
    """
    if entry.scheme == FLOAT:
        return 32.0 * entry.k * entry.n
    per_group = 16 if entry.symmetric else 24
    groups = group_count(entry.k, entry.block_size)
    columns = panel_count(entry.n) * PANEL_COLUMNS
    channels = step_count(entry.k) * STEP_CHANNELS
    return float(columns * (channels * entry.weight_bits + groups * per_group))


def average_bits(plan: Plan) -> float:
    """Bits per weight over all linears."""
    weights = sum(entry.k * entry.n for entry in plan.linears)
    return sum(planned_bits(entry) for entry in plan.linears) / weights


def check_budget(plan: Plan, budget: float) -> None:
    """Refuse a budget that not even the plan as it is meets.

    Raises:
        FptqError: with the average that can be had.
    """
    least = average_bits(plan)
    if least > budget:
        raise FptqError(
            f"--bits-budget {budget:g} cannot be met: this model needs {least:.2f} bits per weight "
            f"with 4-bit weights and their scales; raise it, or use larger blocks"
        )


def precision_candidates(entry: LinearPlan) -> dict[str, LinearPlan]:
    """Ways to give a 4-bit linear more bits, by name; none for one in float or wide already."""
    if entry.scheme == FLOAT or entry.weight_bits == 8:
        return {}
    precisions = {}
    smaller = entry.block_size // 2 if entry.block_size >= 2 * min(_BLOCKS) else None
    if entry.symmetric:
        precisions["zero points"] = replace(entry, symmetric=False)
    if smaller is not None:
        precisions["half blocks"] = replace(entry, block_size=smaller)
        if entry.symmetric:
            precisions["both"] = replace(entry, block_size=smaller, symmetric=False)
    precisions["8 bits"] = replace(entry, weight_bits=8, block_size=PER_CHANNEL)
    return precisions


def allocate_bits(
    plan: Plan,
    groups: Sequence[Sequence[str]],
    sensitivity: Sequence[float],
    ratios: Sequence[Mapping[str, float]],
    budget: float,
) -> Plan:
    """Take the step with the best sensitivity per bit until none fits.

    Args:
        plan: to start from, within the budget.
        groups: names of the linears of each layer group.
        sensitivity: what the layer group costs as planned, any unit, not negative.
        ratios: of each group, by name of a wider form, its output error relative to the planned.
        budget: average bits per weight.

    Returns:
        The plan with wider entries.
    """
    entries = plan.by_name()
    current = [1.0] * len(groups)
    total = sum(entry.k * entry.n for entry in plan.linears)
    left = budget * total - sum(planned_bits(entry) for entry in plan.linears)
    planned = plan.by_name()
    while True:
        best: tuple[float, int, str, float] | None = None
        for index, names in enumerate(groups):
            for precision, ratio in ratios[index].items():
                price = sum(
                    planned_bits(precision_candidates(planned[name])[precision])
                    - planned_bits(entries[name])
                    for name in names
                    if precision in precision_candidates(planned[name])
                )
                gain = sensitivity[index] * (current[index] - ratio)
                if gain <= 0 or not 0 < price <= left:
                    continue
                if best is None or gain / price > best[0]:
                    best = (gain / price, index, precision, price)
        if best is None:
            break
        _, index, precision, price = best
        left -= price
        current[index] = ratios[index][precision]
        for name in groups[index]:
            entries[name] = precision_candidates(planned[name]).get(precision, entries[name])
    return replace(plan, linears=tuple(entries[entry.name] for entry in plan.linears))


def one_form(plan: Plan, shared: Mapping[str, str]) -> Plan:
    """Give linears with one weight the widest form of any of them, which is then stored once.

    Args:
        plan: with forms chosen layer group by layer group.
        shared: see graph/linears/shared_weights.py.
    """
    widest: dict[str, LinearPlan] = {}
    for entry in plan.linears:
        if entry.scheme != FLOAT and (first := shared.get(entry.name)) is not None:
            known = widest.setdefault(first, entry)
            widest[first] = max(known, entry, key=planned_bits)
    return replace(
        plan,
        linears=tuple(
            entry
            if entry.scheme == FLOAT or shared.get(entry.name) not in widest
            else replace(
                entry,
                block_size=widest[shared[entry.name]].block_size,
                symmetric=widest[shared[entry.name]].symmetric,
                weight_bits=widest[shared[entry.name]].weight_bits,
            )
            for entry in plan.linears
        ),
    )


def measure_sensitivity(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    smoothing_scales: Mapping[str, NDArray[np.float32]],
    store: WeightStore,
    windows: Sequence[NDArray[np.int64]],
    *,
    threads: int = 0,
    track: Tracker = lambda items, _: iter(items),
) -> tuple[list[list[str]], list[float]]:
    """KL to the float model with one layer group's weights rounded, for every layer group.

    Args:
        loaded: the float model.
        scan: its linears.
        plan: as solved.
        smoothing_scales: as folded, by the name of what takes them.
        store: the weights as solved.
        windows: tokens to compare on.
        threads: intra-op threads.
        track: wraps the layer groups to show progress.

    Returns:
        The names of each layer group's linears, and its KL in nats.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in scan.linears:
        groups.setdefault(linear.x.name or "", []).append(linear)
    io = decoder_io_of(loaded)
    reference = Decoder(
        open_session_in_memory(loaded.model, loaded.data_folder, threads=threads), io
    )
    entries = plan.by_name()
    columns = column_scales(scan.linears, smoothing_scales)
    sensitivity = []
    for group in track(list(groups.values()), len(groups)):
        rounded = [linear.name for linear in group if entries[linear.name].weight_bits == 4]
        rounded = [name for name in rounded if entries[name].scheme != FLOAT]
        if not rounded:
            sensitivity.append(0.0)
            continue
        clone = loaded.model.clone()
        linears = find_linears(clone).by_name()
        for name in rounded:
            _round(linears[name], entries[name], smoothing_scales, columns.get(name), store)
        session = open_session_in_memory(clone, loaded.data_folder, threads=threads)
        sensitivity.append(compare(reference, Decoder(session, io), windows).kl)
    return [[linear.name for linear in group] for group in groups.values()], sensitivity


def _round(
    linear: Linear,
    entry: LinearPlan,
    smoothing_scales: Mapping[str, NDArray[np.float32]],
    columns: NDArray[np.float32] | None,
    store: WeightStore,
) -> None:
    """Put the rounded weight, undone of its smoothing scales, into the float graph."""
    w = dequantize(store.get(entry.name))
    if entry.fold_site is not None:
        w = w / smoothing_scales[entry.fold_site][:, None]
    if columns is not None:
        w = w * columns
    replace_weight(linear, ir.Tensor(w.astype(linear.weight.dtype.numpy())))
