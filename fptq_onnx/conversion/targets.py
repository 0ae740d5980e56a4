"""From a prepared model to each target: which emitter, and the passes that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.passes.emit_attention import emit_attention
from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.passes.emit_matmul_nbits import emit_matmul_nbits
from fptq_onnx.passes.emit_qdq import MINIMUM_OPSET, emit_qdq
from fptq_onnx.passes.fuse_gated_mlp import fuse_gated_mlp
from fptq_onnx.passes.fuse_shared_inputs import fuse_shared_inputs
from fptq_onnx.passes.quantize_embeddings import quantize_embeddings
from fptq_onnx.passes.raise_opset import raise_opset
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

FLOAT_TARGET = "float"
QDQ_NOTE = (
    "the qdq target is for interchange and NPUs: ONNX Runtime's CPU provider runs it correctly but "
    "slowly, use custom or matmulnbits there"
)


@dataclass(frozen=True)
class Emitted:
    """A model of one target.

    model: ready to be written.
    lines: what was done, for people.
    notes: what a user should know, one sentence each.
    """

    model: ir.Model
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check_targets(targets: Sequence[str], model: ir.Model) -> None:
    """See before anything is measured that every target can hold the model; it is not changed.

    Raises:
        FptqError: one cannot, which is named.
    """
    if "qdq" in targets:
        try:
            raise_opset(model, MINIMUM_OPSET)
        except FptqError as error:
            raise FptqError(f"target qdq: {error}") from error


def _qdq(model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    raised = raise_opset(model, MINIMUM_OPSET)
    emit_qdq(raised, plan, store)
    return Emitted(raised, notes=(QDQ_NOTE,))


def _matmul_nbits(model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    emit_matmul_nbits(model, plan, store)
    return Emitted(model)


def _custom(model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    emit_custom(model, plan, store)
    if not config.fuse:
        return Emitted(model)
    shared = fuse_shared_inputs(model)
    gated, declined = fuse_gated_mlp(model)
    attentions, left = emit_attention(model)
    line = f"fused        {shared} ops hold the linears of one input, {gated} with their gate"
    lines = (line, f"attention    {attentions} in our library") if attentions else (line,)
    return Emitted(model, lines, (*declined, *left))


def _float(model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    return Emitted(model)


def emit(target: str, model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    """Turn a prepared model into one target's, in place.

    Args:
        target: one of config.TARGETS, or FLOAT_TARGET.
        model: the equalized model.
        plan: schemes and groups.
        store: the quantized weights.
        config: what else is wanted: fusing, bits of embeddings.
    """
    emitted = _EMITTERS[target](model, plan, store, config)
    if config.embedding_bits == 32 or target == FLOAT_TARGET:
        return emitted
    tables, declined = quantize_embeddings(emitted.model, config.embedding_bits, store)
    lines = (f"embedding    {len(tables)} in {config.embedding_bits} bits",) if tables else ()
    return replace(emitted, lines=(*emitted.lines, *lines), notes=(*emitted.notes, *declined))


_EMITTERS: dict[str, Callable[[ir.Model, Plan, WeightStore, Config], Emitted]] = {
    "custom": _custom,
    "matmulnbits": _matmul_nbits,
    "qdq": _qdq,
    FLOAT_TARGET: _float,
}
