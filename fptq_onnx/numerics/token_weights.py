"""How much each token counts where errors or products are summed over tokens.

    weight of a token = min(1, CAP * typical energy / its energy)

Sums of squares weigh tokens by their energy. One token of 10^4 times the size of the rest has 10^8
times their energy: alone it would decide every choice, fill the Hessian and set its damping. Up to
CAP times the typical energy tokens count as they are, so that sums over ordinary tokens are what
they always were; larger ones count as one of that energy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Ten times the size. Tokens of models without massive activations stay below.
CAP = 100.0


def token_weights(energy: NDArray[np.floating]) -> NDArray[np.float32]:
    """The weights, float32 [tokens], above 0 and up to 1.

    The typical energy is the lower quartile of the tokens that are not zero: half of the tokens may
    be massive, as they are in samples of two tokens.

    Args:
        energy: float [tokens], finite and not negative.
    """
    weights = np.ones(len(energy), np.float32)
    alive = energy > 0
    if alive.any():
        most = CAP * float(np.quantile(np.asarray(energy[alive], np.float64), 0.25))
        large = energy > most
        weights[large] = most / energy[large]
    return weights
