"""The random-weight models of docs/models.md: a literal table, and how their weights are drawn.

Two layers of 128 channels and an MLP of 352, which is no multiple of 128: a tail group is part of
every model. Norms get gains and biases that differ by channel, and linears get biases, so that what
folds into them is seen to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
_DECODER_EXPORTERS = ("genai", "optimum", "dynamo")
_COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 352, "max_position_embeddings": 256, "initializer_range": 0.08,
}  # fmt: skip
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {**_COMMON, **_IDS, "num_key_value_heads": 2, "head_dim": 32}
_SLIDING = {"sliding_window": 64, "query_pre_attn_scalar": 32}
_FALCON = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.08, **_IDS,
}  # fmt: skip
_ENCODER = {**_COMMON, "pad_token_id": 0}
_ROBERTA = {**_COMMON, "pad_token_id": 1, "max_position_embeddings": 258, "type_vocab_size": 1}


@dataclass(frozen=True)
class SmallModel:
    """One model.

    kind: model_type of transformers.
    architecture: its class there.
    settings: of its configuration.
    exporters: to export it with.
    opsets: further ones for dynamo, beside its usual one.
    """

    kind: str
    architecture: str
    settings: dict[str, Any]
    exporters: tuple[str, ...] = _DECODER_EXPORTERS
    opsets: tuple[int, ...] = ()


def _encoder(kind: str, architecture: str, settings: dict[str, Any]) -> SmallModel:
    return SmallModel(kind, architecture, settings, ("optimum",))


MODELS = {
    "bert": _encoder("bert", "BertForMaskedLM", _ENCODER),
    "bert-hidden": _encoder("bert", "BertModel", _ENCODER),
    # MiniLM is BERT of another shape: many heads of 32 channels, an MLP of four times the width.
    "minilm": _encoder("bert", "BertModel", {**_ENCODER, "intermediate_size": 512}),
    "roberta": _encoder("roberta", "RobertaForMaskedLM", _ROBERTA),
    "roberta-hidden": _encoder("roberta", "RobertaModel", _ROBERTA),
    "distilbert": _encoder(
        "distilbert", "DistilBertForMaskedLM",
        {"vocab_size": 512, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 352,
         "max_position_embeddings": 256, "initializer_range": 0.08},
    ),
    "llama": SmallModel("llama", "LlamaForCausalLM", _GROUPED, ("dynamo",), (18, 21, 22, 23)),
    "mistral": SmallModel("mistral", "MistralForCausalLM", _GROUPED),
    "qwen2": SmallModel("qwen2", "Qwen2ForCausalLM", {**_GROUPED, "head_dim": None}),
    "qwen3": SmallModel("qwen3", "Qwen3ForCausalLM", _GROUPED),
    "phi": SmallModel("phi", "PhiForCausalLM", {**_COMMON, **_IDS}),
    "phi3": SmallModel(
        "phi3", "Phi3ForCausalLM",
        {**_GROUPED, "head_dim": None, "original_max_position_embeddings": 256},
    ),
    "gemma": SmallModel("gemma", "GemmaForCausalLM", _GROUPED),
    "gemma2": SmallModel("gemma2", "Gemma2ForCausalLM", {**_GROUPED, **_SLIDING}),
    "gemma3": SmallModel("gemma3_text", "Gemma3ForCausalLM", {**_GROUPED, **_SLIDING}),
    "gpt-neox": SmallModel("gpt_neox", "GPTNeoXForCausalLM", {**_COMMON, **_IDS}),
    # Attention and MLP one after the other, each with a norm of its own.
    "gpt-neox-serial": SmallModel(
        "gpt_neox", "GPTNeoXForCausalLM", {**_COMMON, **_IDS, "use_parallel_residual": False}
    ),
    # falcon-7b: one norm feeds attention and MLP, one head of keys and values serves all.
    "falcon": SmallModel("falcon", "FalconForCausalLM", {**_FALCON, "parallel_attn": True}),
    # falcon-rw-1b: a norm for each, position biases (alibi), biases in linears.
    "falcon-rw": SmallModel(
        "falcon", "FalconForCausalLM",
        {**_FALCON, "parallel_attn": False, "multi_query": False, "alibi": True, "bias": True},
    ),
    # falcon-40b: two norms side by side, groups of heads.
    "falcon-new": SmallModel(
        "falcon", "FalconForCausalLM",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt2": SmallModel(
        "gpt2", "GPT2LMHeadModel",
        {"vocab_size": 512, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256,
         "initializer_range": 0.08, **_IDS},
    ),
    "opt": SmallModel(
        "opt", "OPTForCausalLM",
        {**_COMMON, **_IDS, "ffn_dim": 352, "word_embed_proj_dim": 128, "init_std": 0.08},
    ),
    "bloom": SmallModel(
        "bloom", "BloomForCausalLM",
        {"vocab_size": 512, "hidden_size": 128, "n_layer": 2, "n_head": 4,
         "initializer_range": 0.08, **_IDS},
    ),
}  # fmt: skip


def small_config(model: SmallModel) -> Any:
    """The configuration of transformers; None among the settings means that it is not given."""
    import transformers

    given = {name: value for name, value in model.settings.items() if value is not None}
    config = transformers.AutoConfig.for_model(model.kind, **given)
    config.architectures = [model.architecture]
    return config


def save_small_model(model: SmallModel, folder: Path) -> None:
    """Write config.json and model.safetensors; the same weights in every run.

    Args:
        model: one of MODELS.
        folder: made here.
    """
    import torch
    import transformers

    torch.manual_seed(SEED)
    network = getattr(transformers, model.architecture)(small_config(model))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    network.save_pretrained(folder)
