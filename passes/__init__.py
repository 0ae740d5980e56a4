"""Graph passes, imported as fptq_onnx.passes (fptq_onnx/passes links here).

README.md lists them in the order they run.
"""

if __name__ != "fptq_onnx.passes":
    raise ImportError("import fptq_onnx.passes, not passes")

from fptq_onnx.graph.declined import Declined
from fptq_onnx.passes._contract import (
    Applied,
    Pass,
    PassError,
    PassResult,
    Refusal,
    apply,
    pass_name,
    rewrite_each,
)

__all__ = [
    "Applied",
    "Declined",
    "Pass",
    "PassError",
    "PassResult",
    "Refusal",
    "apply",
    "pass_name",
    "rewrite_each",
]
