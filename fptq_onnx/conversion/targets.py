"""From a prepared model to each target: a list of passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.passes import Applied, Pass, apply
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


def target_passes(target: str, plan: Plan, store: WeightStore, config: Config) -> list[Pass]:
    """The passes that make a target of a prepared model, in the order they run.

    Args:
        target: one of config.TARGETS, or FLOAT_TARGET.
        plan: schemes and groups.
        store: the quantized weights.
        config: what else is wanted: fusing, bits of embeddings.
    """
    passes: list[Pass] = []
    if target == "custom":
        passes = [partial(emit_custom, plan=plan, store=store)]
        if config.fuse:
            passes += [fuse_shared_inputs, fuse_gated_mlp, emit_attention]
    elif target == "matmulnbits":
        passes = [partial(emit_matmul_nbits, plan=plan, store=store)]
    elif target == "qdq":
        passes = [
            partial(raise_opset, opset=MINIMUM_OPSET),
            partial(emit_qdq, plan=plan, store=store),
        ]
    if target != FLOAT_TARGET and config.embedding_bits != 32:
        passes.append(partial(quantize_embeddings, bits=config.embedding_bits, store=store))
    return passes


def emit(target: str, model: ir.Model, plan: Plan, store: WeightStore, config: Config) -> Emitted:
    """Turn a prepared model into one target's, in place where that can be.

    Args:
        target: one of config.TARGETS, or FLOAT_TARGET.
        model: the equalized model.
        plan: schemes and groups.
        store: the quantized weights.
        config: what else is wanted: fusing, bits of embeddings.
    """
    done = apply(model, target_passes(target, plan, store, config))
    notes = tuple(map(str, done.declined))
    if target == "qdq":
        notes = (QDQ_NOTE, *notes)
    return Emitted(done.model, tuple(_lines(done, config)), notes)


def _lines(done: Applied, config: Config) -> Iterator[str]:
    """What was done, for people."""
    if done.ran("fuse_shared_inputs"):
        shared, gated = done.changed_by("fuse_shared_inputs"), done.changed_by("fuse_gated_mlp")
        yield f"fused        {shared} ops hold the linears of one input, {gated} with their gate"
    if attentions := done.changed_by("emit_attention"):
        yield f"attention    {attentions} in our library"
    if tables := done.changed_by("quantize_embeddings"):
        yield f"embedding    {tables} in {config.embedding_bits} bits"
