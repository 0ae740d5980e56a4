"""Names that options and plan.json had before, accepted until 0.2."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

UNTIL = "0.2"
# Fields of Config, and what they are called now.
CONFIG_FIELDS = {
    "weights": "weight_method",
    "policy": "activation_scheme",
    "w8": "int8_layers",
    "bits_budget": "target_bits",
    "clean_up": "graph_optimization",
    "optimize_graph": "graph_optimization",
}
PLAN_FIELDS = {"weights": "weight_method"}
ACTIVATION_SCHEMES = {"float": "weight_only"}
SCHEMES = {"float": "skip"}
TASKS = {"lastword": "lambada"}
PLAN_FORMAT = "fptq-plan-1"

_Class = TypeVar("_Class", bound=type)


def accepts_old_names(fields: Mapping[str, str]) -> Callable[[_Class], _Class]:
    """A class decorator: old names of fields are keywords of the constructor, and can be read.

    Each use warns with a DeprecationWarning. Where both names are given, the old one counts, so
    that `dataclasses.replace`, which gives all fields by their new names, takes old names as well.

    Args:
        fields: the new name of each old one.
    """

    def decorate(cls: _Class) -> _Class:
        create: Callable[..., None] = cls.__init__  # type: ignore[misc]  # of this very class

        @functools.wraps(create)
        def init(self: object, *values: Any, **named: Any) -> None:
            for old in [name for name in named if name in fields]:
                _warn(cls, old, fields[old], level=3)
                named[fields[old]] = named.pop(old)
            create(self, *values, **named)

        cls.__init__ = init  # type: ignore[misc]
        for old, new in fields.items():
            setattr(cls, old, _reader(cls, old, new))
        return cls

    return decorate


def renamed_scheme(activation_scheme: str) -> str:
    """The activation scheme by its name of today, with a warning where it had another."""
    if activation_scheme not in tuple(ACTIVATION_SCHEMES):  # of any type: refused later
        return activation_scheme
    new = ACTIVATION_SCHEMES[activation_scheme]
    warnings.warn(
        f"activation scheme {activation_scheme!r} is now {new!r}; the old name goes with version "
        f"{UNTIL}",
        DeprecationWarning,
        stacklevel=5,  # __post_init__, __init__ and its wrapper lie between
    )
    return new


def upgraded_plan(data: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from a plan.json, with the names of this version.

    Schemes are renamed in files of this version's format too: people edit plans by hand.

    Args:
        data: one JSON object, not checked yet; what is not as expected stays as it is.
    """
    named = {PLAN_FIELDS.get(key, key): value for key, value in data.items()}
    rows = named.get("linears")
    if isinstance(rows, list):
        named["linears"] = [_upgraded_row(row) for row in rows]
    return named


def _upgraded_row(row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("scheme"), str):
        return row
    return {**row, "scheme": SCHEMES.get(row["scheme"], row["scheme"])}


def _reader(cls: type, old: str, new: str) -> property:
    def read(self: object) -> Any:
        _warn(cls, old, new, level=3)
        return getattr(self, new)

    return property(read, doc=f"`{new}` by its old name.")


def _warn(cls: type, old: str, new: str, *, level: int) -> None:
    warnings.warn(
        f"{cls.__name__}.{old} is now {new}; the old name goes with version {UNTIL}",
        DeprecationWarning,
        stacklevel=level,
    )
