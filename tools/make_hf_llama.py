"""Write a LLaMA with random weights as a Hugging Face folder, for the exporters to export.

pip install '.[export]'
python tools/make_hf_llama.py build/llama-hf --tokenizer TOKENIZER_FOLDER
fptq-onnx export build/llama-hf -o build/llama-optimum --exporter optimum
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a folder whose tokenizer files are copied")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden,
        intermediate_size=options.intermediate, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.context, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(options.output)
    for file in options.tokenizer.glob("tokenizer*") if options.tokenizer else ():
        shutil.copy(file, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
