"""The list of linears that the models table trusts, against transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra export: make test-export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 64, "head_dim": 16,
}  # fmt: skip
SMALL = {"hidden_size": 32, "n_head": 4, "n_layer": 3, "vocab_size": 64}
CONFIGS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), SIZES),
    "phi3": {**SIZES, "pad_token_id": 0},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 64},
    "bloom": SMALL,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_linear_of_the_classes_is_listed_with_its_shape(kind, monkeypatch):
    import torch
    from transformers.pytorch_utils import Conv1D

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from module_tree import module_tree

    # Old classes know no head_dim and no fewer key heads: they must not be told of them.
    settings = dict(CONFIGS[kind])
    if kind in ("opt", "qwen2", "phi3"):
        settings.pop("head_dim")
    if kind == "opt":
        settings.pop("num_key_value_heads")
        settings.pop("intermediate_size")
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nx, module.nf)
    tree = module_tree(config.to_dict())
    stem = next(name for name in found if name.endswith(f".0.{tree.layer[0].name}"))
    stem = stem.removesuffix(f"0.{tree.layer[0].name}")
    wanted = {
        f"{stem}{number}.{module.name}": (module.inputs, sum(n for _, n in module.parts))
        for number in range(3)
        for module in tree.layer
    }
    wanted[tree.head.name] = (tree.head.inputs, tree.head.parts[0][1])
    assert found == wanted
    assert tree.count == len(found) and len(tree.parts()) >= len(found)
