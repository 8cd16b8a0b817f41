"""Counter-based random generators: one independent stream per key, so that a resumed run needs no replay.

A key begins with its purpose, and no two purposes have one name: what is drawn for one never meets what is drawn for
another, whatever the numbers in their keys.
"""

import hashlib
from operator import index

import numpy as np

DERIVATION = 3
"""Version of the way from keys to the noise of releases; to be raised with every change of it."""


def key_bits(*key: int | str) -> int:
    """128 bits that name `key`; equal keys give equal bits, different keys differ (SHA-256)."""
    plain = tuple(part if isinstance(part, str) else index(part) for part in key)  # numpy's integers are ints here
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:16], "little")


def generator(*key: int | str) -> np.random.Generator:
    """The Philox generator of `key`, e.g. (purpose, seed, step, rank, tensor)."""
    return np.random.Generator(np.random.Philox(key=key_bits(*key)))
