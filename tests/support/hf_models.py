"""Small torch models of random weights in Hugging Face folders; needs the extra export."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.command_line import MODEL


def small_llama(folder: Path, **settings: object) -> Path:
    """A LLaMA of two layers with the embedded model's tokenizer; the same in every run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        **{
            "vocab_size": 2048,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            # Large enough that the most likely token is clear of the next one.
            "initializer_range": 0.3,
            **settings,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return with_tokenizer(folder)


def small_bert(folder: Path, kind: str = "BertModel") -> Path:
    """An encoder of two layers; kind: the class, which may have a head."""
    import torch
    import transformers

    torch.manual_seed(7)
    family = transformers.RobertaConfig if kind.startswith("Roberta") else transformers.BertConfig
    config = family(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    return with_tokenizer(folder)


def small_gpt2(folder: Path) -> Path:
    """An architecture that onnxruntime-genai's builder does not know."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    """Put the embedded model's tokenizer into a folder."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    return folder
