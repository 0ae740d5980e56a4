"""The list of linears that the models table trusts, against transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra export: make test-export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
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
    monkeypatch.syspath_prepend(str(TOOLS))
    # Old classes know no head_dim and no fewer key heads: they must not be told of them.
    settings = dict(CONFIGS[kind])
    if kind in ("opt", "qwen2", "phi3"):
        settings.pop("head_dim")
    if kind == "opt":
        settings.pop("num_key_value_heads")
        settings.pop("intermediate_size")
    config = transformers.AutoConfig.for_model(kind, **settings)
    compare_with_classes(config, transformers.AutoModelForCausalLM.from_config)


def test_every_linear_of_the_models_that_are_exported(monkeypatch):
    """Encoders, Falcon of three kinds: what make_exports.py makes."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from small_models import MODELS, small_config

    assert {"bert", "roberta", "falcon-new", "gpt-neox", "gemma3"} <= set(MODELS)
    for model in MODELS.values():
        compare_with_classes(small_config(model), getattr(transformers, model.architecture))


def compare_with_classes(config, make):
    """The tree of a configuration against the modules that transformers makes of it."""
    import torch
    from module_tree import module_tree
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = make(config)
    found = {}
    for name, module in model.named_modules():
        # FalconLinear is one of nn.Linear. A pooler is no part of what is exported.
        if isinstance(module, torch.nn.Linear) and name != "pooler.dense":
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nx, module.nf)
    tree = module_tree(config.to_dict())
    stem = next(name for name in found if name.endswith(f".0.{tree.layer[0].name}"))
    stem = stem.removesuffix(f"0.{tree.layer[0].name}")
    wanted = {
        f"{stem}{number}.{module.name}": (module.inputs, sum(n for _, n in module.parts))
        for number in range(tree.layers)
        for module in tree.layer
    }
    for module in tree.outer:
        wanted[module.name] = (module.inputs, sum(n for _, n in module.parts))
    assert found == wanted, config.model_type
    assert tree.count == len(found) and len(tree.parts()) >= len(found)
