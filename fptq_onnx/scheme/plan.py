"""What was decided for each linear: plain data that people read, edit and replay."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.model_io.downloaded_file import check_downloaded
from fptq_onnx.model_io.text_encoding import read_text
from fptq_onnx.numerics.group_weights import BITS
from fptq_onnx.numerics.smoothing_scales import LAE, NONE
from fptq_onnx.scheme.config import BLOCK_SIZES, EMBEDDING_BITS, KV_CACHES, WEIGHTS, Config

STATIC = "static"
LAE_STATIC = "lae_static"
PER_TOKEN = "per_token"
WEIGHT_ONLY = "weight_only"
FLOAT = "float"
STAYS = "stays in float: its output "  # begins the reason of a linear that decides
SCHEMES = (STATIC, LAE_STATIC, PER_TOKEN, WEIGHT_ONLY, FLOAT)

_FORMAT = "fptq-plan-1"


@dataclass(frozen=True)
class LinearPlan:
    """How one linear is quantized.

    name: the node's name.
    path: the module path, for people.
    k, n: input and output channels.
    range: max|x| of the input seen in calibration.
    scheme: one of SCHEMES.
    reason: why this scheme.
    fold_site: the norm whose gain takes the equalization of this linear's input, or None. Set for
        lae_static, and for other schemes that share a folded input.
    input_scale: the static int8 scale of the (equalized) input; None when not static.
    block_size, symmetric: the groups of the weight.
    weight_bits: bits of a weight, 4 or 8.
    equalization: the formula of the smoothing scales folded at fold_site
        (numerics/smoothing_scales.py); "none" where nothing is folded.
    """

    name: str
    path: str
    k: int
    n: int
    range: float
    scheme: str
    reason: str
    fold_site: str | None
    input_scale: float | None
    block_size: int
    symmetric: bool
    weight_bits: int = 4
    equalization: str = NONE


@dataclass(frozen=True)
class Plan:
    """The decisions for a whole model, linears in graph order.

    v0, v1: the thresholds they were made with.
    weights, embedding_bits, kv_cache: see Config; None in plans that do not say.
    """

    v0: float
    v1: float
    linears: tuple[LinearPlan, ...]
    weights: str | None = None
    embedding_bits: int | None = None
    kv_cache: str | None = None

    def applied(self, config: Config) -> Config:
        """The configuration with what the plan decides for the whole model."""
        said = {"weights": self.weights, "embedding_bits": self.embedding_bits,
                "kv_cache": self.kv_cache}  # fmt: skip
        return replace(config, **{k: v for k, v in said.items() if v is not None})  # type: ignore[arg-type]

    def by_name(self) -> dict[str, LinearPlan]:
        """The entries keyed by node name."""
        return {entry.name: entry for entry in self.linears}

    def folded_sites(self) -> tuple[str, ...]:
        """Names of the norms that take an equalization, in graph order."""
        sites = (entry.fold_site for entry in self.linears if entry.fold_site is not None)
        return tuple(dict.fromkeys(sites))

    def counts(self) -> dict[str, int]:
        """Number of linears per scheme, schemes in the paper's order, zeros included."""
        counter = Counter(entry.scheme for entry in self.linears)
        return {scheme: counter[scheme] for scheme in SCHEMES}

    @property
    def needs_sequential(self) -> bool:
        """Whether it holds scales that only a walk through the model can compute again."""
        return any(
            entry.equalization not in (NONE, LAE)
            or (entry.equalization == LAE and entry.fold_site in self.by_name())
            for entry in self.linears
        )

    def to_json(self) -> str:
        """One object; one line per linear, so that it can be edited and compared by hand."""
        rows = ",\n".join("    " + json.dumps(asdict(entry)) for entry in self.linears)
        said = {"v0": self.v0, "v1": self.v1, "weights": self.weights,
                "embedding_bits": self.embedding_bits, "kv_cache": self.kv_cache}  # fmt: skip
        known = {key: value for key, value in said.items() if value is not None}
        head = json.dumps({"format": _FORMAT, **known})[:-1]
        return f'{head},\n  "linears": [\n{rows}\n  ]\n}}\n'

    @staticmethod
    def load(path: Path) -> Plan:
        """Read a plan.json.

        Raises:
            FptqError: no such file, not a plan, or an entry that makes no sense.
        """
        if path.is_dir():
            raise FptqError(f"cannot read the plan {path}: it is a folder")
        try:
            check_downloaded(path)
            data = json.loads(read_text(path))
        except OSError as error:
            raise FptqError(f"cannot read the plan {path}: {error.strerror}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise FptqError(f"the plan {path} is not valid JSON: {error}") from error
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise FptqError(f"{path} is not a plan of this version (format {_FORMAT!r} expected)")
        rows = data.get("linears")
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise FptqError(f"the plan {path} has no list of linears")
        try:
            v0, v1 = float(data["v0"]), float(data["v1"])
        except (KeyError, TypeError, ValueError) as error:
            raise FptqError(f"the plan {path} has no thresholds v0 and v1") from error
        whole = {"weights": WEIGHTS, "embedding_bits": EMBEDDING_BITS, "kv_cache": KV_CACHES}
        for name, allowed in whole.items():
            value = data.get(name)
            fits = type(value) is type(allowed[0]) and value in allowed
            if value is not None and not fits:
                raise FptqError(
                    f"the plan {path} has the {name} {value!r}: use one of "
                    f"{', '.join(map(str, allowed))}"
                )
        said = {name: data.get(name) for name in whole}
        return Plan(v0, v1, tuple(_entry(row, path) for row in rows), **said)

    def check_against(self, scan: LinearScan) -> None:
        """Refuse a plan that was made for another model.

        Raises:
            FptqError: the linears differ in name or shape.
        """
        linears = scan.by_name()
        planned = self.by_name()
        if len(planned) != len(self.linears):
            raise FptqError("the plan names a linear twice: keep one entry for each")
        for name, entry in planned.items():
            linear = linears.get(name)
            if linear is None:
                raise FptqError(f"the plan names {name!r}, which is no linear of this model")
            if (linear.k, linear.n) != (entry.k, entry.n):
                raise FptqError(
                    f"the plan has {name!r} as {entry.k} x {entry.n}, the model as "
                    f"{linear.k} x {linear.n}: it was made for another model"
                )
        missing = [name for name in linears if name not in planned]
        if missing:
            raise FptqError(
                f"the plan lacks {missing[0]!r} (and {len(missing) - 1} more): add an entry for "
                f"every linear, with scheme 'float' for those to leave alone"
            )


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "float | None": (int, float, type(None)),
}


def _entry(row: Any, path: Path) -> LinearPlan:
    """Check one row of the JSON: every field present, of its type, with a sensible value."""
    names = {field.name for field in fields(LinearPlan)}
    if not isinstance(row, Mapping) or set(row) != names:
        found = sorted(set(row) ^ names) if isinstance(row, Mapping) else row
        raise FptqError(f"the plan {path} has an entry with wrong or missing fields: {found}")
    for field in fields(LinearPlan):
        value = row[field.name]
        boolean_as_number = isinstance(value, bool) and field.type != "bool"
        if not isinstance(value, _JSON_TYPES[str(field.type)]) or boolean_as_number:
            raise FptqError(
                f"the plan {path} gives {row['name']!r} a {field.name} of {value!r}, "
                f"which is not of type {field.type}"
            )
    if row["scheme"] not in SCHEMES:
        raise FptqError(
            f"the plan {path} gives {row['name']!r} the unknown scheme {row['scheme']!r}: "
            f"use one of {', '.join(SCHEMES)}"
        )
    if row["weight_bits"] not in BITS:
        raise FptqError(
            f"the plan {path} gives {row['name']!r} weight_bits {row['weight_bits']}: use 4 or 8"
        )
    if row["block_size"] not in BLOCK_SIZES:
        raise FptqError(
            f"the plan {path} gives {row['name']!r} block size {row['block_size']}: "
            f"use one of {', '.join(map(str, BLOCK_SIZES))}"
        )
    return LinearPlan(**row)
