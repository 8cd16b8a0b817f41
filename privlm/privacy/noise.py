"""Gaussian noise for releases, from two sources that make different promises.

`SecureNoise` is what a guarantee needs: bits of the operating system, never repeated. `ReproducibleNoise` is
for tests and bit-exact resume: whoever knows the seed can subtract it, and two runs that share a seed share
their noise, so that the difference of their releases is exact.

Both draw floating-point numbers. The set of values that a float32 Gaussian can take depends on how it is
computed, and an attacker who sees released numbers at full precision may exploit that (Mironov, CCS 2012);
the accounting is that of the ideal, continuous Gaussian.
"""

import math
import os
import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from privlm.privacy import keyed_random

_CHUNK = 1 << 16  # pairs drawn at a time: float64 work space that stays in cache


class Noise(Protocol):
    """A source of standard normal tensors; different (step, rank, index) give independent ones."""

    def sample(self, shape: Sequence[int], *, step: int, rank: int, index: int, device: torch.device | str) -> Tensor:
        """A float32 tensor of `shape` with independent N(0, 1) entries for parameter number `index`."""
        ...

    def noise_id(self, step: int) -> str:
        """Names the noise of one release: equal ids mean the same noise, drawn again."""
        ...


class ReproducibleNoise:
    """Noise that is a function of (seed, step, rank, index), the same on every call."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def sample(self, shape: Sequence[int], *, step: int, rank: int, index: int, device: torch.device | str) -> Tensor:
        key = ("noise", self._seed, step, rank, index)
        if torch.device(device).type == "cuda":
            cuda_generator = torch.Generator(device).manual_seed(keyed_random.key_bits(*key) >> 65)  # takes 63 bits
            return torch.randn(*shape, generator=cuda_generator, device=device, dtype=torch.float32)
        # torch's CPU generator uses 32 bits of its seed: with one key per tensor and step those would repeat.
        return torch.from_numpy(keyed_random.generator(*key).standard_normal(tuple(shape), dtype=np.float32)).to(device)

    def noise_id(self, step: int) -> str:
        return f"{keyed_random.key_bits('noise id', self._seed, step):032x}"


class SecureNoise:
    """Fresh noise from the operating system's generator on every call (Box-Muller transform in float64)."""

    def sample(self, shape: Sequence[int], *, step: int, rank: int, index: int, device: torch.device | str) -> Tensor:
        noise = np.empty(math.prod(shape), dtype=np.float32)
        for start in range(0, noise.size, 2 * _CHUNK):
            piece = noise[start : start + 2 * _CHUNK]
            piece[:] = _box_muller((piece.size + 1) // 2)[: piece.size]
        return torch.from_numpy(noise.reshape(tuple(shape))).to(device)

    def noise_id(self, step: int) -> str:
        return secrets.token_hex(16)


def _box_muller(num_pairs: int) -> np.ndarray:
    """2 * num_pairs independent N(0, 1) numbers."""
    random_bits = np.frombuffer(os.urandom(16 * num_pairs), dtype=np.uint64).reshape(2, num_pairs)
    uniform = ((random_bits >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1): its logarithm is finite
    radius = np.sqrt(-2 * np.log(uniform[0]))
    angle = 2 * math.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
