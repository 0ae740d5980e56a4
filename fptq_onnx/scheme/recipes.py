"""The systems people choose between, as settings of one pipeline and the target that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.scheme.config import Config

FLOAT16 = "fp16"


@dataclass(frozen=True)
class Recipe:
    """One way to make a model smaller.

    name: for --recipe.
    precision: bits of weights and activations, for tables.
    summary: one line for people.
    target: what is written unless asked otherwise; all but custom run on stock ONNX Runtime.
    settings: fields of Config that differ from its defaults.
    """

    name: str
    precision: str
    summary: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self, **chosen: Any) -> Config:
        """Its Config; what the user chose comes first.

        Raises:
            FptqError: see Config.
        """
        return Config(**{**self.settings, **chosen})


# What rivals leave in floats stays so in their recipes.
_PLAIN = {
    "weight_method": "rtn",
    "equalization": "none",
    "activation_scheme": "static",
    "embedding_bits": 32,
}

RECIPES = (
    Recipe(
        "fptq", "W4A8", "measured smoothing scales and schemes, GPTQ weights in groups", "custom"
    ),
    Recipe(
        "paper",
        "W4A8",
        "FPTQ to the letter: thresholds on ranges, LAE, round to nearest",
        "custom",
        {
            "weight_method": "rtn",
            "equalization": "lae",
            "activation_scheme": "thresholds",
            "embedding_bits": 32,
        },
    ),
    Recipe(
        "w4a8-static",
        "W4A8",
        "plain post-training quantization: one scale per tensor, round to nearest",
        "custom",
        _PLAIN,
    ),
    Recipe(
        "w8a8",
        "W8A8",
        "plain post-training quantization: one scale per tensor, weights per channel",
        "qdq",
        {**_PLAIN, "weight_bits": 8},
    ),
    Recipe(
        "smoothquant",
        "W8A8",
        "SmoothQuant with exponent 0.5, folded wherever it can be, then as w8a8",
        "qdq",
        {**_PLAIN, "equalization": "smoothquant", "weight_bits": 8},
    ),
    Recipe(
        "gptq",
        "W4A16",
        "GPTQ weights in groups, activations in float",
        "matmulnbits",
        {
            "weight_method": "gptq",
            "equalization": "none",
            "activation_scheme": "weight_only",
            "embedding_bits": 32,
        },
    ),
    Recipe(FLOAT16, "W16A16", "weights and activations in float16", FLOAT16),
)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        FptqError: there is none.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES)
    raise FptqError(f"no recipe {name!r}: use one of {known}")
