"""Plain data without infinities and NaN, which JSON has no numbers for."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """The same lists, dicts and scalars with None for every float that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value
