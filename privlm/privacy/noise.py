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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from privlm.privacy import keyed_random

_CHUNK = 1 << 16  # pairs drawn at a time: float64 work space that stays in cache


@dataclass(frozen=True)
class Draw:
    """What the noise of one release depends on, besides its source and the rank that draws it."""

    step: int
    shapes: tuple[tuple[int, ...], ...]  # of its tensors
    world_size: int
    device: str  # as device_name gives it: devices draw different numbers for one seed


class Noise(Protocol):
    """A source of standard normal tensors; different draws and different ranks get independent ones.

    is_reproducible: whether the same draw gives the same noise again.
    """

    is_reproducible: bool

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        """For each of the draw's shapes a float32 tensor of independent N(0, 1) entries, on `device`."""
        ...

    def noise_id(self, draw: Draw) -> str:
        """Names the noise of one release, of all ranks: equal ids mean the same noise, drawn again."""
        ...


class ReproducibleNoise:
    """Noise that is a function of (seed, draw, rank), the same on every call.

    seed: any whole number; a stage's own, so that no two stages draw the same noise.
    """

    is_reproducible = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        for index, shape in enumerate(draw.shapes):
            key = ("noise", self._seed, draw.step, rank, index)
            if device.type == "cuda":
                cuda_generator = torch.Generator(device).manual_seed(keyed_random.key_bits(*key) >> 65)  # takes 63 bits
                yield torch.randn(*shape, generator=cuda_generator, device=device, dtype=torch.float32)
            else:
                # torch's CPU generator uses 32 bits of its seed: with one key per tensor and step those would repeat.
                generator = keyed_random.generator(*key)
                yield torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(device)

    def noise_id(self, draw: Draw) -> str:
        return f"{keyed_random.key_bits('noise id', self._seed, draw.step):032x}"


class SecureNoise:
    """Fresh noise from the operating system's generator on every call (Box-Muller transform in float64)."""

    is_reproducible = False

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        for shape in draw.shapes:
            noise = np.empty(math.prod(shape), dtype=np.float32)
            for start in range(0, noise.size, 2 * _CHUNK):
                piece = noise[start : start + 2 * _CHUNK]
                piece[:] = _box_muller((piece.size + 1) // 2)[: piece.size]
            yield torch.from_numpy(noise.reshape(shape)).to(device)

    def noise_id(self, draw: Draw) -> str:
        return secrets.token_hex(16)


def device_name(device: torch.device) -> str:
    """What draws on `device`: a GPU's model, since the numbers of one seed differ between models."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _box_muller(num_pairs: int) -> np.ndarray:
    """2 * num_pairs independent N(0, 1) numbers."""
    random_bits = np.frombuffer(os.urandom(16 * num_pairs), dtype=np.uint64).reshape(2, num_pairs)
    uniform = ((random_bits >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1): its logarithm is finite
    radius = np.sqrt(-2 * np.log(uniform[0]))
    angle = 2 * math.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
