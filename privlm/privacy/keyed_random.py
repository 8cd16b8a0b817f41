"""Counter-based random generators: one independent stream per key, so that a resumed run needs no replay."""

import hashlib

import numpy as np

DERIVATION = 1
"""Version of the way from keys to the noise of releases; to be raised with every change of it."""


def key_bits(*key: int | str) -> int:
    """128 bits that name `key`; equal keys give equal bits, different keys differ (SHA-256)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "little")


def generator(*key: int | str) -> np.random.Generator:
    """The Philox generator of `key`, e.g. (purpose, seed, step, rank, tensor)."""
    return np.random.Generator(np.random.Philox(key=key_bits(*key)))
