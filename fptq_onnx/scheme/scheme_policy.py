"""Which scheme the input of a linear gets by its range, and why: the FPTQ policy, and its words.

    max|x| <= v0              static       one int8 scale for the tensor
    v0 < max|x| <= v1         lae_static   equalize, then one int8 scale; needs a fold
    max|x| > v1, or no fold   per_token    one int8 scale per row, found at run time

That is arXiv 2308.15987, section 3. The policies static, per_token and float give all the same;
measured compares output errors (quantization/scheme_decision.py). Whoever decides, `with_scheme`
alone writes scheme, static scale and reason into a plan.
"""

from __future__ import annotations

from dataclasses import replace

from fptq_onnx.graph.declined import Declined
from fptq_onnx.numerics.int8 import static_scale
from fptq_onnx.numerics.smoothing_scales import LAE
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC, WEIGHT_ONLY, LinearPlan

UNSEEN = "no token of the calibration samples reaches it"
MASSIVE = "a few tokens are far larger than the rest"
ONE_SCALE = "one scale for all tokens"


def asks_for_lae(largest: float, config: Config) -> bool:
    """Whether the thresholds equalize an activation with values up to `largest`."""
    return config.v0 < largest <= config.v1


def by_thresholds(largest: float, config: Config, obstacle: Declined | None) -> tuple[bool, str]:
    """Whether the thresholds give all tokens one scale, and why.

    Args:
        largest: max|x| of the activation, before any equalization.
        config: the thresholds v0 and v1.
        obstacle: why it is not equalized; None where it is, or where the thresholds do not ask.
    """
    if largest <= config.v0:
        return True, f"range {largest:.4g} <= v0 = {config.v0:g}"
    if not asks_for_lae(largest, config):
        return False, f"range {largest:.4g} > v1 = {config.v1:g}"
    between = f"v0 = {config.v0:g} < range {largest:.4g} <= v1 = {config.v1:g}"
    if obstacle is not None:
        return False, f"{between}, but it cannot be equalized: {obstacle.reason}"
    return True, between


def with_scheme(
    entry: LinearPlan, *, static: bool, largest: float, reason: str, left_out: str = ""
) -> LinearPlan:
    """The entry with its scheme, static scale and reason; weight_only and float stay as they are.

    Args:
        entry: with its equalization; lae makes static lae_static.
        static: one scale for all tokens, or one for each.
        largest: max|x / s|, the largest magnitude where the input is rounded.
        reason: why.
        left_out: what the options ask for but is not done for a few tokens' sake; "" for nothing.
    """
    if entry.scheme in (SKIP, WEIGHT_ONLY):
        return entry
    if left_out:
        reason = f"{reason}; {MASSIVE}, so {left_out} is left out"
    if not static:
        return replace(entry, scheme=PER_TOKEN, input_scale=None, reason=reason)
    scheme = LAE_STATIC if entry.equalization == LAE else STATIC
    return replace(entry, scheme=scheme, input_scale=float(static_scale(largest)), reason=reason)
