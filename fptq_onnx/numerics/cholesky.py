"""H = R R^T with R upper triangular, in place, and solving with it: the algebra GPTQ needs.

NumPy has a Cholesky factorization (lower, of a copy) and no triangular solve; 11008 x 11008 float32
are half a gigabyte, so neither copies nor float64 are for free. Blocks keep everything in matrix
products. R of the reversed order is what GPTQ calls the Cholesky factor of the inverse: column k of
R / diag(R) says how an error in an earlier row is best made up for in row k (LDL^T feedback as in
QuIP, arXiv 2307.13304, section 3, equal to GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
_STRIP = 1024


def factor_upper(h: NDArray[np.floating]) -> None:
    """Overwrite a symmetric positive definite matrix with R, upper triangular, h = R R^T.

    Args:
        h: float32 or float64 [K, K]; only its upper triangle is read. The lower one becomes 0.

    Raises:
        numpy.linalg.LinAlgError: h is not positive definite; it is then half overwritten.
    """
    k = len(h)
    for start in range((k - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        stop = min(start + _BLOCK, k)
        # The lower factor of the reversed block, reversed, is the upper factor of the block; NumPy
        # reads the lower triangle alone.
        corner = np.linalg.cholesky(h[start:stop, start:stop][::-1, ::-1])[::-1, ::-1]
        if not np.isfinite(np.diag(corner)).all():  # LAPACK lets NaN pass
            raise np.linalg.LinAlgError("the matrix holds NaN or infinity")
        h[start:stop, start:stop] = corner
        h[start:stop, :start] = 0
        if start == 0:
            continue
        panel = h[:start, start:stop] @ np.linalg.inv(corner).T.astype(h.dtype)
        h[:start, start:stop] = panel
        for row in range(0, start, _STRIP):
            strip = slice(row, min(row + _STRIP, start))
            h[strip, row:start] -= panel[strip] @ panel[row:].T


def solve_factored(r: NDArray[np.floating], b: NDArray[np.floating]) -> None:
    """Overwrite b [K, N] with the solution x of R R^T x = b."""
    k = len(r)
    starts = range(0, k, _BLOCK)
    for start in reversed(starts):  # R y = b
        rows = slice(start, min(start + _BLOCK, k))
        if rows.stop < k:
            b[rows] -= r[rows, rows.stop :] @ b[rows.stop :]
        b[rows] = np.linalg.solve(r[rows, rows], b[rows])
    for start in starts:  # R^T x = y
        rows = slice(start, min(start + _BLOCK, k))
        if start > 0:
            b[rows] -= r[:start, rows].T @ b[:start]
        b[rows] = np.linalg.solve(r[rows, rows].T, b[rows])
