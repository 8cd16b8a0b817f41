"""Distances between the distributions of two sets of features: Frechet (FID) and kernel (KID).

    found = frechet_distance(real, fake, extractor)     # named fid[shapes_cnn], with n and dims
    found = kernel_distance(real, fake, extractor)      # named kid[shapes_cnn], the better one of few images

A Frechet distance of few images is far too large, by an amount that depends on their number: figures of different
numbers of images or of different extractors are not comparable. The kernel distance is unbiased at any number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.diffusion.extractors import Extractor
from privlm.errors import UsageError

RIDGE = 1e-7
"""Added to both covariances, as a share of their mean variance: directions without variance have a root then."""


@dataclass(frozen=True)
class Distance:
    """name: `fid[<extractor>]` or `kid[<extractor>]`. standard_error: of kid alone. dims: of the features."""

    name: str
    value: float
    standard_error: float | None
    n_real: int
    n_fake: int
    dims: int


def frechet_distance(real: Any, fake: Any, extractor: Extractor, *, allow_small: bool = False) -> Distance:
    """The Frechet distance of two sets of images [N, H, W, 3]; raises as `frechet` does."""
    a, b = extractor(real), extractor(fake)
    return Distance(f"fid[{extractor.name}]", frechet(a, b, allow_small=allow_small), None, len(a), len(b), a.shape[1])


def kernel_distance(real: Any, fake: Any, extractor: Extractor) -> Distance:
    """The kernel distance of two sets of images [N, H, W, 3]; raises as `kernel` does."""
    a, b = extractor(real), extractor(fake)
    value, standard_error = kernel(a, b)
    return Distance(f"kid[{extractor.name}]", value, standard_error, len(a), len(b), a.shape[1])


def frechet(a: Any, b: Any, *, allow_small: bool = False) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2 in float64 (Frechet 1957; Heusel et al., NeurIPS 2017).

    a, b: features [N, D] and [M, D]. Raises UsageError for fewer than two of either, for fewer than D + 1 unless
    `allow_small` (their covariances are singular, the figure tells of the number of images), and where features are
    not finite.
    """
    a, b = _features(a, b)
    _refuse_few(a, b, allow_small)
    difference = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    ridge = RIDGE * (np.trace(first) + np.trace(second)) / (2 * len(first)) * np.eye(len(first))
    first, second = first + ridge, second + ridge
    root = _root(first)
    product = root @ second @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    shared = np.sqrt(eigenvalues.clip(min=0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * shared)


def kernel(a: Any, b: Any) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 in float64 (Binkowski et al.,
    ICLR 2018, on Gretton et al., JMLR 2012), below 0 by chance where the sets are alike; and its standard error, by
    leaving out each image in turn (Efron and Stein, Annals of Statistics 1981), too large where they are alike.

    a, b: features [N, D] and [M, D], N and M from 3 on. Raises UsageError for fewer, and where they are not finite.
    """
    a, b = _features(a, b)
    if min(len(a), len(b)) < 3:
        raise UsageError(f"kid needs at least 3 images of each set, not {len(a)} and {len(b)}: give more images")
    within_a, within_b, across = _polynomial(a, a), _polynomial(b, b), _polynomial(a, b)
    np.fill_diagonal(within_a, 0)
    np.fill_diagonal(within_b, 0)
    n, m = across.shape
    total_a, total_b, total = within_a.sum(), within_b.sum(), across.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * total / (n * m)
    without_a = (
        (total_a - 2 * within_a.sum(axis=1)) / ((n - 1) * (n - 2))
        + total_b / (m * (m - 1))
        - 2 * (total - across.sum(axis=1)) / ((n - 1) * m)
    )
    without_b = (
        total_a / (n * (n - 1))
        + (total_b - 2 * within_b.sum(axis=1)) / ((m - 1) * (m - 2))
        - 2 * (total - across.sum(axis=0)) / (n * (m - 1))
    )
    variance = without_a.var() * (n - 1) + without_b.var() * (m - 1)
    return float(value), float(np.sqrt(variance))


def _polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a symmetric matrix without negative eigenvalues but by rounding."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T


def _features(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D] with one D above 0, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UsageError("features of images are not finite: look at the images, and at the extractor")
    return a, b


def _refuse_few(a: np.ndarray, b: np.ndarray, allow_small: bool) -> None:
    fewest, dims = min(len(a), len(b)), a.shape[1]
    if fewest < 2:
        raise UsageError(f"fid needs at least 2 images of each set, not {len(a)} and {len(b)}: give more images")
    if fewest < dims + 1 and not allow_small:
        raise UsageError(
            f"fid of {len(a)} and {len(b)} images with {dims} features is a figure of the number of images: give at "
            f"least {dims + 1} of each, take kid, or set allow_small=true"
        )
