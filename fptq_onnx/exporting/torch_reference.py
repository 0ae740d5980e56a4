"""What the torch model computes on a few tokens, to compare an export with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.exporting.tasks import Task

LENGTH = 9  # tokens; a prefill and some steps with the cache
_BATCH = 2


def load_torch_model(source: Path, task: Task) -> Any:
    """The model in float32, ready to run; code that comes with a model is never run."""
    import torch
    import transformers

    kind = getattr(transformers, task.auto)
    return kind.from_pretrained(source, dtype=torch.float32, local_files_only=True).eval()


def save_torch_reference(model: Any, file: Path, output: str) -> None:
    """Write input_ids [batch, sequence] and the result of a full forward as .npz.

    Args:
        model: see `load_torch_model`.
        file: gets int64 `input_ids` and, under its name, the float32 output.
        output: logits of any kind of head, or last_hidden_state.
    """
    import torch

    rng = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = rng.integers(min(3, vocabulary - 1), vocabulary, (_BATCH, LENGTH))
    tensor = torch.from_numpy(ids)
    with torch.no_grad():
        done = model(input_ids=tensor, attention_mask=torch.ones_like(tensor))
    np.savez(file, input_ids=ids, **{output: done[output].numpy()})
