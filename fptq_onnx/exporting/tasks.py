"""What a torch class computes, and so what its export must: the task, and the output compared."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.errors import FptqError


@dataclass(frozen=True)
class Task:
    """One kind of model.

    name: as optimum calls it.
    auto: the class of transformers that loads it.
    output: what torch and the export are compared in.
    causal: a decoder, fed token by token with its cache.
    """

    name: str
    auto: str
    output: str
    causal: bool = False


CAUSAL = Task("text-generation-with-past", "AutoModelForCausalLM", "logits", causal=True)
_BY_ENDING = {
    "ForMaskedLM": Task("fill-mask", "AutoModelForMaskedLM", "logits"),
    "ForSequenceClassification": Task(
        "text-classification", "AutoModelForSequenceClassification", "logits"
    ),
    "ForTokenClassification": Task(
        "token-classification", "AutoModelForTokenClassification", "logits"
    ),
    "Model": Task("feature-extraction", "AutoModel", "last_hidden_state"),
}


def task_of(architecture: str) -> Task:
    """The task of a torch class that is no causal language model.

    Raises:
        FptqError: none known here; another task would leave its head out.
    """
    for ending, task in _BY_ENDING.items():
        if architecture.endswith(ending):
            return task
    raise FptqError(
        f"{architecture} is neither a causal language model nor an encoder with one of the known "
        f"heads ({', '.join(list(_BY_ENDING)[:-1])}): export it yourself, or name its base class "
        "(...Model) under architectures in config.json to have its hidden states"
    )
