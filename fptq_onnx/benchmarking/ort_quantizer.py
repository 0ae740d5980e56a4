"""What a user gets without us: ONNX Runtime's own 4-bit quantizer, round to nearest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.change_weight import replace_weight
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.save import MODEL_FILE, save_model
from fptq_onnx.model_io.tokenizer_files import copy_side_files
from fptq_onnx.passes.normalize import normalize


def quantize_stock(source: Path, output: Path, block_size: int) -> float:
    """Quantize with onnxruntime.quantization's MatMulNBitsQuantizer, accuracy_level 4, symmetric.

    Args:
        source: a float model.
        output: an existing folder.
        block_size: 32 or 128.

    Returns:
        Average bits stored per weight of the linears: codes and scales; what it left alone counts
        as it is stored.

    Raises:
        FptqError: it cannot quantize the model.
    """
    stock = _stock_module()
    loaded = load_model(source)
    normalize(loaded.model)
    linears = loaded.linears.linears
    for linear in linears:  # it does not see weights behind a Cast or a Transpose
        # A copy: a view would keep the file mapped, which reading all of it then cannot close.
        w = np.array(linear.weight.load(), linear.weight.dtype.numpy())
        replace_weight(linear, ir.Tensor(w, dtype=linear.weight.dtype))
    common_passes.RemoveUnusedNodesPass()(loaded.model)
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(loaded.model))
        quantizer = stock.MatMulNBitsQuantizer(
            proto, block_size=block_size, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        model = ir.from_proto(quantizer.model.model)
    except Exception as error:  # it raises whatever it meets
        raise FptqError(
            f"ONNX Runtime's own quantizer cannot quantize {loaded.file}: {error}"
        ) from error
    bits = _stored_bits(model, sum(linear.k * linear.n for linear in linears))
    save_model(model, output)
    copy_side_files(loaded.folder, output, MODEL_FILE)
    return bits


def _stored_bits(model: ir.Model, weights: int) -> float:
    stored = 0.0
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            tensors = [value.const_value for value in node.inputs[1:] if value is not None]
            stored += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    stored += sum(linear.weight.dtype.itemsize * linear.k * linear.n
                  for linear in find_linears(model).linears)  # fmt: skip
    return 8 * stored / weights


def _stock_module() -> Any:
    """The rival, in a comparison only; importing it would turn on everybody's log messages."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    from onnxruntime.quantization import (  # noqa: TID251
        matmul_nbits_quantizer as stock,
    )

    root.setLevel(level)
    root.handlers[:] = handlers
    logging.getLogger(stock.__name__).setLevel(logging.WARNING)
    return stock
