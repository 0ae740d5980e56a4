"""Scan as opset 8 has it, over a batch of sequences, as two Scans of opset 9.

Scan-8(lengths, states [B, ...], sequences [B, S, ...]) becomes a Scan-9 over B without states,
with Scan-9(states [...], sequences [S, ...]) as its body.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir


def scan_of_batches(node: ir.Node, name: Callable[[str], str]) -> None:
    """Rewrite a node in place; its body becomes the inner Scan's.

    Args:
        node: a Scan-8 without lengths of sequences.
        name: gives a value name nobody has.
    """
    given = list(node.inputs)[1:]
    attributes = node.attributes
    inner_attributes = {key: attributes[key] for key in ("body", "num_scan_inputs")}
    if "directions" in attributes:
        directions = attributes["directions"].as_ints()
        inner_attributes["scan_input_directions"] = ir.AttrInt64s(
            "scan_input_directions", directions
        )
    stem = node.name or node.outputs[0].name or "Scan"
    rows = [ir.Value(name=name(f"{stem}_row_{index}")) for index in range(len(given))]
    for row, whole in zip(rows, given, strict=True):
        row.type = whole.type if whole is not None else None
        if whole is not None and whole.shape is not None:
            row.shape = ir.Shape(list(whole.shape)[1:])
    inner = ir.Node(
        "", "Scan", rows, list(inner_attributes.values()), num_outputs=len(node.outputs)
    )
    inner.name = name(f"{stem}_inner")
    for value in inner.outputs:
        value.name = name(f"{stem}_made")
    body = ir.Graph(rows, inner.outputs, nodes=[inner], name=name(f"{stem}_batch"))
    for key in list(attributes):
        del attributes[key]
    attributes["body"] = ir.AttrGraph("body", body)
    attributes["num_scan_inputs"] = ir.AttrInt64("num_scan_inputs", len(given))
    for index, whole in enumerate(given):
        node.replace_input_with(index, whole)
    node.resize_inputs(len(given))
