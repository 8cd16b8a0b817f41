"""The privacy loss of one Poisson-subsampled Gaussian step, in units of its noise."""

import numpy as np


def loss(x: np.ndarray, sampling_rate: float, mu: float) -> np.ndarray:
    """L(x) = log dQ/dP(x) for P = N(0, 1), record absent, and Q = (1 - q) N(0, 1) + q N(mu, 1), with mu = 1 / sigma."""
    exponent = mu * x - mu**2 / 2
    if sampling_rate == 1:
        return exponent
    # log1p and expm1 keep the mean, about -1e-6 for small q; past 50 expm1 could overflow and the 1 no longer matters.
    small = np.log1p(sampling_rate * np.expm1(np.minimum(exponent, 50.0)))
    return np.where(exponent < 50.0, small, np.logaddexp(np.log1p(-sampling_rate), np.log(sampling_rate) + exponent))
