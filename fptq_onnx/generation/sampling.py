"""Which token comes next: the most likely, or one drawn from the likely ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError

# The API's; NumPy takes no negative ones, so the sampler counts them from the other end of 64 bits.
SEEDS = range(-(1 << 63), 1 << 63)

# Bounds of the repetition penalty: beyond them float32 has no numbers for logits.
_LEAST, _MOST = 0.001, 1000.0


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen. The default is greedy: always the most likely one.

    Attributes:
        temperature: logits are divided by it; 0 is greedy, whatever top_k and top_p say.
        top_k: only so many of the most likely tokens can be drawn; 0 for all.
        top_p: only the most likely tokens that together have this probability; 1 for all, 0 for
            the most likely one.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely
            (Keskar et al., 2019, arXiv:1909.05858: divides their positive logits, multiplies their
            negative ones); 1 for none. It holds for greedy choice, too.
        seed: of the draw, one of SEEDS; None for another one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            FptqError: a number out of its range.
        """
        if not 0 <= self.temperature <= _MOST:
            raise FptqError(f"the temperature must be from 0 to {_MOST:g}, got {self.temperature}")
        if self.top_k < 0:
            raise FptqError(f"top-k must be at least 0 (0 for all tokens), got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise FptqError(f"top-p must be from 0 to 1, got {self.top_p}")
        if not _LEAST <= self.repetition_penalty <= _MOST:
            raise FptqError(
                f"the repetition penalty must be from {_LEAST} to {_MOST:g}, "
                f"got {self.repetition_penalty}"
            )
        if self.seed is not None and self.seed not in SEEDS:
            raise FptqError(f"the seed must be from {SEEDS[0]} to {SEEDS[-1]}")


class Sampler:
    """Chooses the tokens of one sequence; its draws depend on no other sequence."""

    def __init__(self, settings: SamplingSettings, prompt: Iterable[int] = ()) -> None:
        """Begin after a prompt, whose tokens a repetition penalty holds for."""
        self._settings = settings
        seed = settings.seed
        self._rng = np.random.default_rng(None if seed is None else seed % (1 << 64))
        self._seen: set[int] = set(prompt) if settings.repetition_penalty != 1 else set()

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token.

        Args:
            logits: float32 [vocabulary]; not changed.

        Raises:
            FptqError: a logit is NaN.
        """
        settings = self._settings
        if settings.repetition_penalty != 1 and self._seen:
            logits = self._penalized(logits)
        best = int(logits.argmax())  # NaN counts as the largest
        if math.isnan(logits[best]):
            raise FptqError("the model gave NaN for the next token; its weights are out of range")
        token = best if settings.temperature == 0 else self._draw(logits)
        if settings.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _penalized(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = np.fromiter(self._seen, np.int64)
        seen = seen[seen < len(logits)]
        penalty = np.float32(self._settings.repetition_penalty)
        changed = logits.copy()
        changed[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return changed

    def _draw(self, logits: NDArray[np.float32]) -> int:
        tokens, probabilities = likely_tokens(logits, self._settings)
        place = int(np.searchsorted(np.cumsum(probabilities), self._rng.random(), side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def likely_tokens(
    logits: NDArray[np.float32], settings: SamplingSettings
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that can be drawn, the most likely first, and their probabilities.

    Args:
        logits: float32 [vocabulary].
        settings: with a temperature above 0.

    Returns:
        int64 [n] and float64 [n]; the probabilities add up to 1, n >= 1.
    """
    count = min(settings.top_k or len(logits), len(logits))
    kept = np.arange(len(logits))
    if count < len(logits):  # a partial sort: the vocabulary is large
        kept = np.argpartition(logits, -count)[-count:]
    kept = kept[np.argsort(-logits[kept], kind="stable")].astype(np.int64)
    scaled = logits[kept].astype(np.float64)
    with np.errstate(over="ignore"):  # far below the best one: minus infinity is as good
        scaled = (scaled - scaled[0]) / settings.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if settings.top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        enough = max(1, int((before < settings.top_p).sum()))  # 0 takes the first one alone
        kept, probabilities = kept[:enough], probabilities[:enough]
        probabilities = probabilities / probabilities.sum()
    return kept, probabilities
