"""Refuse a result that is further from the original than the user allows."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.conversion.verify import Verification
from fptq_onnx.errors import FptqError


@dataclass(frozen=True)
class Gate:
    """Limits on the comparison with the original, on samples kept out of calibration.

    max_kl: largest mean KL(original || result), nats; None allows any.
    min_top1: smallest share of positions with the same most likely token; None allows any.
    """

    max_kl: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that make no sense.

        Raises:
            FptqError: a negative or NaN KL, or a share outside 0..1.
        """
        if self.max_kl is not None and not self.max_kl >= 0:
            raise FptqError(f"--max-kl must be a number of nats, 0 or more, got {self.max_kl:g}")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise FptqError(f"--min-top1 must be a share between 0 and 1, got {self.min_top1:g}")

    @property
    def closed(self) -> bool:
        """Whether there is anything to check."""
        return self.max_kl is not None or self.min_top1 is not None

    def check(self, what: str, result: Verification) -> None:
        """Compare a result with the limits.

        Args:
            what: the target, for the message.
            result: of `verify`.

        Raises:
            FptqError: a limit is missed, or the model is no language model.
        """
        if not self.closed:
            return
        found = result.comparison
        if found is None:
            raise FptqError("--max-kl and --min-top1 need a language model: leave them out")
        if not result.held_out:
            raise FptqError(
                "--max-kl and --min-top1 need samples that calibration has not used, and there are "
                "no more: give more text, or a smaller --max-samples"
            )
        missed = []
        if self.max_kl is not None and not found.kl <= self.max_kl:
            missed.append(f"KL {found.kl:.4g} is above --max-kl {self.max_kl:g}")
        if self.min_top1 is not None and not found.top1 >= self.min_top1:
            missed.append(f"top-1 agreement {found.top1:.6g} is below --min-top1 {self.min_top1:g}")
        if missed:
            raise FptqError(
                f"the {what} model is not good enough, nothing was written: {'; '.join(missed)} "
                f"(on {result.samples} samples); give it more bits (--target-bits, --asymmetric, "
                f"--block-size 64) or better calibration data, or allow more"
            )
