"""Gaussian noise for releases, from two sources that make different promises.

`SecureNoise` is what a guarantee needs: bits of the operating system, never repeated. `ReproducibleNoise` is
for tests and bit-exact resume: whoever knows the seed can subtract it, and two runs that share a seed share
their noise, so that the difference of their releases is exact.

Both draw floating-point numbers. The set of values that a float32 Gaussian can take depends on how it is
computed, and an attacker who sees released numbers at full precision may exploit that (Mironov, CCS 2012);
the accounting is that of the ideal, continuous Gaussian.
"""

import hmac
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from privlm.privacy import keyed_random

_CHUNK = 1 << 15  # pairs drawn at a time: work space that stays in cache


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """What the noise of one release depends on, besides its source and the rank that draws it."""

    step: int
    shapes: tuple[Shape, ...]  # of its tensors
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

    def seal(self, draw: Draw, digest: bytes) -> bytes | None:
        """What tells the sums that this noise is added to from others, and tells nothing else to whoever cannot
        subtract the noise; None where the noise is never drawn again.
        """
        ...


class ReproducibleNoise:
    """Noise that is a function of (seed, draw, rank), the same on every call.

    seed: any whole number; a stage's own, so that no two stages draw the same noise.
    """

    is_reproducible = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        key = (*self._key(draw), rank)
        if device.type == "cuda":
            seed = keyed_random.key_bits("noise", *key) >> 65  # torch takes 63 bits
            cuda_generator = torch.Generator(device).manual_seed(seed)
            for shape in draw.shapes:
                yield torch.randn(shape, generator=cuda_generator, device=device, dtype=torch.float32)
        else:
            # torch's CPU generator uses 32 bits of its seed: with one key per rank and step those would repeat.
            bits = np.random.SFC64(keyed_random.key_bits("noise", *key))  # half the time of keyed_random's Philox

            def uniform(num_pairs: int) -> Tensor:
                """In steps of 2^-32, finer near 0, whose logarithm makes the tails."""
                drawn = bits.random_raw(num_pairs).view(np.uint32).astype(np.float32)
                return torch.from_numpy(drawn).add_(0.5).mul_(2.0**-32)

            yield from _normal(draw.shapes, uniform, device)

    def noise_id(self, draw: Draw) -> str:
        return f"{keyed_random.key_bits('noise id', *self._key(draw)):032x}"

    def seal(self, draw: Draw, digest: bytes) -> bytes:
        key = keyed_random.key_bits("seal of sums", *self._key(draw))
        return hmac.digest(key.to_bytes(16, "little"), digest, "sha256")

    def _key(self, draw: Draw) -> tuple[int | str, ...]:
        """All that the noise depends on: where one of these differs, noise and id are others, and independent."""
        return keyed_random.DERIVATION, self._seed, draw.step, draw.world_size, draw.device, str(draw.shapes)


class SecureNoise:
    """Fresh noise from the operating system's generator on every call (Box-Muller transform in float64)."""

    is_reproducible = False

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        def uniform(num_pairs: int) -> Tensor:
            random_bits = np.frombuffer(os.urandom(16 * num_pairs), dtype=np.uint64)
            return torch.from_numpy(((random_bits >> np.uint64(11)) + 0.5) * 2.0**-53)

        return _normal(draw.shapes, uniform, device)

    def noise_id(self, draw: Draw) -> str:
        return secrets.token_hex(16)

    def seal(self, draw: Draw, digest: bytes) -> None:
        return None


def device_name(device: torch.device) -> str:
    """What draws on `device`: a GPU's model, since the numbers of one seed differ between models."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _normal(shapes: Iterable[Shape], uniform: Callable[[int], Tensor], device: torch.device) -> Iterator[Tensor]:
    """Independent N(0, 1) numbers, float32, by the Box-Muller transform in the precision of `uniform`.

    uniform: gives twice as many independent numbers of (0, 1] as it is asked for pairs.
    """
    for together in _groups(shapes):
        sizes = list(map(math.prod, together))
        noise = torch.empty(sum(sizes))
        for piece in noise.split(2 * _CHUNK):
            num_pairs = (len(piece) + 1) // 2
            radius, angle = uniform(num_pairs).view(2, num_pairs)
            radius.log_().mul_(-2).sqrt_()
            angle.mul_(2 * math.pi)
            piece[:num_pairs] = torch.cos(angle).mul_(radius)
            piece[num_pairs:] = angle.sin_().mul_(radius)[: len(piece) - num_pairs]
        yield from (part.view(shape) for part, shape in zip(noise.to(device).split(sizes), together, strict=True))


def _groups(shapes: Iterable[Shape]) -> Iterator[list[Shape]]:
    """Small tensors that fit into one piece are drawn together, a large one alone."""
    group: list[Shape] = []
    for shape in shapes:
        if group and sum(map(math.prod, [*group, shape])) > 2 * _CHUNK:
            yield group
            group = []
        group.append(shape)
    yield group
