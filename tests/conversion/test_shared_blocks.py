"""Roles and layers in real exports: each layer has each role once, and names agree where they tell.

The finder reads no names here, so that names can be the check.
"""

from __future__ import annotations

import re

import pytest

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.linears.roles import find_blocks
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes.normalize import normalize

LLAMA = {"q", "k", "v", "o", "gate", "up", "down"}
FUSED = {"qkv", "o", "gate", "up", "down"}
# By model and exporter; everything else is as LLAMA.
ROLES = {
    "bloom": {"qkv", "o", "fc1", "fc2"},
    "gpt2": {"qkv", "o", "fc1", "fc2"},
    "opt": {"q", "k", "v", "o", "fc1", "fc2"},
}
# Of the modules' names as exporters keep them.
CALLED = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "qkv_proj": "qkv", "o_proj": "o", "out_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "fc1": "fc1", "fc2": "fc2",
    "lm_head": "head", "query_key_value": "qkv", "dense": "o", "dense_h_to_4h": "fc1",
    "dense_4h_to_h": "fc2", "c_attn": "qkv", "c_fc": "fc1", "attn.c_proj": "o",
    "mlp.c_proj": "fc2",
}  # fmt: skip
LAYERS = {"tinystories": 6}


def expected_roles(name: str) -> set[str]:
    model = name.split("-", maxsplit=1)[0]
    fused = "genai" in name and "noqkvfuse" not in name
    return ROLES.get(model, FUSED if fused else LLAMA)


def test_every_export_has_its_layers_and_roles(shared_exports):
    folders = sorted(path for path in shared_exports.iterdir() if path.is_dir())
    if not folders:
        pytest.skip("no exports in the shared folder")
    for folder in folders:
        model = load_model(folder).model
        normalize(model)
        linears = find_linears(model).linears
        blocks = find_blocks(linears)
        found: dict[int | None, list[str]] = {}
        for linear in linears:
            block = blocks[linear.name]
            found.setdefault(block.layer, []).append(block.role)
            number = re.search(r"(?:layers|h)\.(\d+)\.", linear.path)
            if number is not None:
                assert block.layer == int(number[1]), (folder.name, linear.path)
            called = [role for end, role in CALLED.items()
                      if linear.path == end or linear.path.endswith(f".{end}")]  # fmt: skip
            if called:
                assert block.role == called[0], (folder.name, linear.path)
        count = LAYERS.get(folder.name.split("-")[0], 2)
        roles = sorted(expected_roles(folder.name))
        wanted: dict[int | None, list[str]] = {layer: roles for layer in range(count)}
        wanted[None] = ["head"]
        assert {layer: sorted(roles) for layer, roles in found.items()} == wanted, folder.name


def test_no_name_is_needed(shared_exports):
    """Names that say nothing, or lie, change no role and no layer."""
    for folder in sorted(path for path in shared_exports.iterdir() if path.is_dir()):
        model = load_model(folder).model
        normalize(model)
        before = list(find_blocks(find_linears(model).linears).values())
        for index, node in enumerate(model.graph):
            node.name = f"/model/layers.{7 - index % 3}/attn/k_proj_{index}/MatMul"
            node.metadata_props.pop("pkg.torch.onnx.name_scopes", None)
        assert list(find_blocks(find_linears(model).linears).values()) == before, folder.name
