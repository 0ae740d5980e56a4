"""Token embeddings in 8 or 4 bits: a table is one row of D values per token of the vocabulary.

    8 bits, standard ops     Reshape(Cast(Gather(codes, ids)) * Gather(scales, ids))
    4 bits                   com.microsoft::GatherBlockQuantized

Rows are rounded in groups of channels like weights, symmetric: nearest of 8 bits, clip search of 4.
The table may be a head's weight [D, V] behind a Transpose, as onnxruntime-genai's builder writes
tied embeddings, or behind Reshape, Cast and Identity. A head that shares the table has codes of its
own by now; a table that anything else still reads stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import Constant, constant_of
from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.op_domains import MSFT_DOMAIN, is_onnx_op
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.group_weights import GroupWeights, group_count, middle, quantize_rtn
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import constant_initializer, lazy_initializer
from fptq_onnx.scheme.weight_store import WeightStore

# Below this a table is one of positions or token types: nothing to gain.
_FEWEST_ELEMENTS = 1 << 16
_BLOCKS_8 = (128, 64, 32)
_BLOCK_4 = 32
_INT4_IR_VERSION = 10
_KEEPS_INDICES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
# What a table is read through: the same numbers in another shape, order or type.
_FORMS = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
SCALES = "fptq.scales"  # key in meta of an initializer: part of a quantized table
_TABLE_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Embedding:
    """A table of token embeddings [V, D].

    constant: the table as it is looked up.
    lookups: the Gathers.
    obstacle: why it has to keep its floats; '' where nothing is in the way.
    """

    constant: Constant
    lookups: tuple[ir.Node, ...]
    obstacle: str


def quantize_embeddings(model: ir.Model, bits: int, store: WeightStore) -> PassResult:
    """Replace the lookups of token embeddings, in place; count the tables.

    Args:
        model: emitted: linears are quantized already.
        bits: 8 or 4.
        store: receives the codes, so that several targets share them.

    Raises:
        FptqError: a table holds NaN or infinity.
    """
    done, declined = [], []
    for found in find_embeddings(model):
        name, table = found.constant.name, found.constant
        if found.obstacle:
            declined.append(Declined(f"the embedding {name} keeps its floats", found.obstacle))
            continue
        done.append(name)
        if _key(name, bits) not in store:
            store.put(_key(name, bits), _rounded(table, bits))
        for node in found.lookups:
            (_eight if bits == 8 else _four)(model.graph, node, table, store)
    if done and bits == 4:
        model.graph.opset_imports[MSFT_DOMAIN] = 1
        model.ir_version = max(model.ir_version, _INT4_IR_VERSION)
    if done:
        common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(done), tuple(declined), tuple(done))


def find_embeddings(model: ir.Model, leaving: Collection[int] = ()) -> list[Embedding]:
    """The tables of token embeddings, in graph order of their first lookup.

    Args:
        model: any; not changed.
        leaving: ids of nodes that will not read a table any more: linears to be quantized.
    """
    # By type and form too: a table that is looked up both as stored and behind a Cast is two.
    lookups: dict[tuple[object, ...], list[ir.Node]] = {}
    tables: dict[tuple[object, ...], Constant] = {}
    for node in model.graph:
        table = _table_of(node)
        if table is not None:
            key = (table.name, table.dtype, _form(node.inputs[0]))
            lookups.setdefault(key, []).append(node)
            tables[key] = table
    return [
        Embedding(table, tuple(lookups[key]), _obstacle(table, lookups[key], leaving))
        for key, table in tables.items()
    ]


def _form(value: ir.Value | None) -> tuple[object, ...]:
    """In what form a table is read: its transposes and reshapes, from the lookup back."""
    steps: list[object] = []
    while value is not None and (node := value.producer()) is not None and node.inputs:
        if node.op_type == "Transpose":
            perm, before = node.attributes.get("perm"), constant_of(node.inputs[0])
            rank = 2 if before is None else len(before.shape)
            steps.append(tuple(range(rank))[::-1] if perm is None else tuple(perm.as_ints()))
        elif node.op_type not in ("Cast", "Identity"):
            shaped = constant_of(value)
            steps.append(() if shaped is None else ("shape", *shaped.shape))
        value = node.inputs[0]
    return tuple(steps)


def _table_of(node: ir.Node) -> Constant | None:
    """The table of a Gather of token embeddings."""
    if not is_onnx_op(node, "Gather"):
        return None
    axis = node.attributes.get("axis")
    table = constant_of(node.inputs[0])
    if table is None or len(table.sources) != 1:
        return None
    if axis is not None and axis.as_int() not in (0, -2):
        return None
    if len(table.shape) != 2 or table.dtype not in _TABLE_TYPES:
        return None
    if table.shape[0] * table.shape[1] < _FEWEST_ELEMENTS:
        return None
    if all(reader is not node for reader in _readers(table.sources[0])):  # behind arithmetic
        return None
    return table if are_tokens(node.inputs[1]) else None


def _obstacle(table: Constant, lookups: Sequence[ir.Node], leaving: Collection[int]) -> str:
    """Why a table has to stay; ''."""
    source = table.sources[0]
    others = {
        reader.name
        for reader in _readers(source)
        if reader not in lookups and id(reader) not in leaving
    }
    if others or source.is_graph_output():
        what = ", ".join(sorted(filter(None, others))) or "the model's output"
        return f"{what} reads it too"
    if any(ids is None or ids.shape is None for ids in (node.inputs[1] for node in lookups)):
        return "the rank of its indices is not known"
    return ""


def _readers(source: ir.Value) -> list[ir.Node]:
    """What reads a table, also behind another form of it."""
    found: list[ir.Node] = []
    for use in source.uses():
        if use.node.op_type in _FORMS and not use.node.outputs[0].is_graph_output():
            found += _readers(use.node.outputs[0])
        else:
            found.append(use.node)
    return found


def are_tokens(indices: ir.Value | None) -> bool:
    """Whether indices are given to the model, not computed (as positions are)."""
    while indices is not None and not indices.is_graph_input():
        node = indices.producer()
        if node is None or node.op_type not in _KEEPS_INDICES:
            return False
        indices = node.inputs[0]
    return indices is not None


def _key(name: str, bits: int) -> str:
    return f"embedding {name} {bits}"


def _rounded(table: Constant, bits: int) -> GroupWeights:
    """The table [V, D] as weights [D, V]: groups run along D."""
    rows = table.load().astype(np.float32, copy=False).T
    if not np.isfinite(rows).all():
        raise FptqError(
            f"the embedding {table.name} holds NaN or infinity: use --embedding-bits 32"
        )
    if bits == 8:
        return quantize_rtn(rows, _block_8(table.shape[1]), bits=8)
    return quantize_mse(rows, np.ones(table.shape[1]), _BLOCK_4, bits=4)


def _block_8(channels: int) -> int:
    return next((block for block in _BLOCKS_8 if channels % block == 0), channels)


def _eight(graph: ir.Graph, node: ir.Node, table: Constant, store: WeightStore) -> None:
    key, (tokens, channels) = _key(table.name, 8), table.shape
    block = _block_8(channels)
    codes = _tensor(
        graph,
        f"{table.name}.W8",
        ir.DataType.INT8,
        (tokens, channels // block, block),
        lambda: (store.get(key).codes ^ np.uint8(middle(8))).T.view(np.int8),
    )
    scales = _tensor(
        graph,
        f"{table.name}.scales",
        table.dtype,
        (tokens, channels // block, 1),
        lambda: store.get(key).scales.T,
    )
    ids = node.inputs[1]
    assert ids is not None and ids.shape is not None
    # 0 keeps a dimension of the indices.
    joined = np.array([0] * len(ids.shape) + [channels], np.int64)
    shape = constant_initializer(graph, f"embedding.shape{len(joined)}.{channels}", joined)
    picked = ir.node("Gather", [codes, ids])
    floats = ir.node("Cast", picked.outputs, {"to": table.dtype})
    rows = ir.node("Gather", [scales, ids])
    product = ir.node("Mul", [floats.outputs[0], rows.outputs[0]])
    whole = ir.node("Reshape", [product.outputs[0], shape])
    _replace(node, [picked, floats, rows, product, whole])


def _four(graph: ir.Graph, node: ir.Node, table: Constant, store: WeightStore) -> None:
    key, (tokens, channels) = _key(table.name, 4), table.shape
    codes = _tensor(
        graph,
        f"{table.name}.W4",
        ir.DataType.INT4,
        (tokens, channels),
        lambda: store.get(key).codes.T.astype(np.int8) - np.int8(middle(4)),
    )
    scales = _tensor(
        graph,
        f"{table.name}.scales",
        table.dtype,
        (tokens, group_count(channels, _BLOCK_4)),
        lambda: store.get(key).scales.T,
    )
    found = ir.node(
        "GatherBlockQuantized",
        [codes, node.inputs[1], scales],
        {"gather_axis": 0, "quantize_axis": 1, "block_size": _BLOCK_4},
        domain=MSFT_DOMAIN,
    )
    _replace(node, [found])


def _tensor(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    make: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    """An initializer of this name, made when written; lookups of one table share it."""
    if name in graph.initializers:
        return graph.initializers[name]

    def shaped() -> NDArray[np.generic]:
        return np.ascontiguousarray(make()).reshape(shape).astype(dtype.numpy(), copy=False)

    value = lazy_initializer(graph, name, dtype, shape, shaped)
    value.meta[SCALES] = True
    return value


def _replace(node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put nodes in place of a lookup; the last one's output takes over."""
    graph, old, new = node.graph, node.outputs[0], nodes[-1].outputs[0]
    assert isinstance(graph, ir.Graph)
    for index, made in enumerate(nodes):
        made.name = f"{node.name}.{index}"
        for output in made.outputs[: made is not nodes[-1]]:
            output.name = f"{made.name}.output"
    nodes[-1].metadata_props.update(node.metadata_props)
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    graph.remove(node, safe=True)
