"""Decide, edit the decisions by hand, convert with them.

    python examples/edit_plan.py [OUTPUT_FOLDER]

plan.json has one line per linear and is made to be edited. On the command line the same is:

    fptq-onnx convert MODEL -o first                       # writes first/plan.json
    fptq-onnx convert MODEL -o second --plan edited.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fptq_onnx

MODEL = Path(__file__).resolve().parent.parent / "models" / "tinystories-7m"


def widen(plan: dict[str, Any], part: str) -> list[str]:
    """Give the linears whose module path or name holds `part` 8-bit weights and per-token scales.

    Args:
        plan: the contents of a plan.json; changed in place.
        part: text to look for.

    Returns:
        The names of the linears changed.
    """
    changed = []
    for linear in plan["linears"]:
        if part in linear["path"] or part in linear["name"]:
            # A per-token scale is found at run time, so there is no static one to give.
            linear.update(weight_bits=8, scheme="per_token", input_scale=None, reason="by hand")
            changed.append(linear["name"])
    return changed


def main(output: Path) -> None:
    """The head of the embedded model in 8 bits, everything else as it is decided by default."""
    samples = fptq_onnx.Samples("random", max_samples=8, max_seq_len=64)
    decided = fptq_onnx.convert(MODEL, dry_run=True, samples=samples)

    plan = json.loads(decided.plan.to_json())
    print("8 bits:", ", ".join(widen(plan, "lm_head")))
    with tempfile.TemporaryDirectory() as scratch:
        edited = Path(scratch) / "edited.json"
        edited.write_text(json.dumps(plan), encoding="utf-8")
        fptq_onnx.convert(MODEL, output, plan=edited, samples=samples, say=print)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "model-w4a8")
