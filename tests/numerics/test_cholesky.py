"""The blocked upper factor and its solve against numpy.linalg, at and around the block sizes."""

from __future__ import annotations

import numpy as np
import pytest

from fptq_onnx.numerics import cholesky as upper_cholesky
from fptq_onnx.numerics.cholesky import factor_upper, solve_factored

SIZES = (1, 2, 255, 256, 257, 600)
DTYPES = (np.float32, np.float64)


def positive_definite(
    rng: np.random.Generator, k: int, dtype: type, *, condition: float = 100.0
) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1 to `condition`, no two rows alike."""
    basis, _ = np.linalg.qr(rng.standard_normal((k, k)))
    h = (basis * np.geomspace(1, condition, k)) @ basis.T
    return ((h + h.T) / 2).astype(dtype)


def reference(h: np.ndarray) -> np.ndarray:
    """The lower factor of the reversed matrix, reversed."""
    return np.linalg.cholesky(h[::-1, ::-1].astype(np.float64))[::-1, ::-1]


def backward_bound(h: np.ndarray) -> float:
    """Cholesky in any blocking: |R R^T - H| <= gamma_(K+1) |R||R^T| (Higham, theorem 10.3), and

    no element of |R||R^T| is above the largest of H by Cauchy-Schwarz.
    Inverting the corner of a block costs its condition once more: below 100 here, as all of H's,
    whose square root is what counts: 10. So (10 + 1) (K + 1) eps max|H|.
    """
    return 11 * (len(h) + 1) * float(np.finfo(h.dtype).eps) * float(np.abs(h).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", SIZES)
def test_the_factor_gives_the_matrix_back(rng: np.random.Generator, k: int, dtype: type) -> None:
    h = positive_definite(rng, k, dtype)
    r = h.copy()
    factor_upper(r)
    assert r.dtype == dtype
    np.testing.assert_array_equal(r, np.triu(r))
    assert (np.diag(r) > 0).all()
    exact = r.astype(np.float64)
    assert np.abs(exact @ exact.T - h).max() <= backward_bound(h)
    # The factor is unique; R differs by the backward error times the condition, 100.
    assert np.abs(r - reference(h)).max() <= 100 * backward_bound(h)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_any_block_and_strip_size(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Strips of the trailing part end inside it, and are wider and narrower than blocks."""
    monkeypatch.setattr(upper_cholesky, "_BLOCK", block)
    monkeypatch.setattr(upper_cholesky, "_STRIP", 10)
    h = positive_definite(rng, 150, np.float64)
    r = h.copy()
    factor_upper(r)
    assert np.abs(r - reference(h)).max() <= 100 * backward_bound(h)
    b = rng.standard_normal((150, 3))
    x = b.copy()
    solve_factored(r, x)
    np.testing.assert_allclose(h @ x, b, atol=100 * 150 * 2.0**-52 * np.abs(b).max())


def test_only_the_upper_triangle_is_read(rng: np.random.Generator) -> None:
    h = positive_definite(rng, 300, np.float64)
    r, whole = np.triu(h), h.copy()
    r[np.tril_indices(300, -1)] = np.nan
    factor_upper(r)
    factor_upper(whole)
    np.testing.assert_array_equal(r, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("n", [1, 9])
def test_solving(rng: np.random.Generator, k: int, n: int, dtype: type) -> None:
    h = positive_definite(rng, k, dtype)
    b = rng.standard_normal((k, n)).astype(dtype)
    r, x = h.copy(), b.copy()
    factor_upper(r)
    solve_factored(r, x)
    assert x.dtype == dtype
    expected = np.linalg.solve(h.astype(np.float64), b.astype(np.float64))
    # Forward error: the condition, 100, times twice the backward error relative to the norm of H,
    # which is 100 too, so K eps 2 * 11 * 100 relative to the solution's largest value.
    bound = 2 * 11 * 100 * (k + 1) * float(np.finfo(dtype).eps) * np.abs(expected).max()
    assert np.abs(x - expected).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 300])
@pytest.mark.parametrize("kind", ["zero", "negative", "nan"])
def test_what_has_no_factor_is_refused(
    rng: np.random.Generator, k: int, dtype: type, kind: str
) -> None:
    h = positive_definite(rng, k, dtype)
    h[0, 0] = {"zero": 0.0, "negative": -1.0, "nan": np.nan}[kind]
    with pytest.raises(np.linalg.LinAlgError):
        factor_upper(h)
