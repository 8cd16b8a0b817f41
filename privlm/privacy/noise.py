"""Gaussian noise for releases, from two sources that make different promises.

`SecureNoise` is what a guarantee needs: bits of the operating system, never repeated. `ReproducibleNoise` is
for tests and bit-exact resume: whoever knows the seed can subtract it, and two runs that share a seed share
their noise, so that the difference of their releases is exact.

Both draw floating-point numbers. The set of values that a float32 Gaussian can take depends on how it is
computed, and an attacker who sees released numbers at full precision may exploit that (Mironov, CCS 2012);
the accounting is that of the ideal, continuous Gaussian. Each number takes 32 random bits, and 32 more where it may lie
in the tails, which reach 9.4 standard deviations.
"""

import hmac
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privlm.privacy import keyed_random

_PIECE = 1 << 17  # numbers drawn at a time on a CPU: the work space stays in its caches
_GPU_PIECE = 1 << 24  # on a GPU: few kernels, little memory
_FINE = 1 << 8  # words below this one get a fraction
_HALF_RANGE = 2.0**31  # of a word of 32 bits with a sign

Shape = tuple[int, ...]
Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Draw:
    """What the noise of one release depends on, besides its source and the rank that draws it."""

    step: int
    shapes: tuple[Shape, ...]  # of its tensors
    world_size: int
    device: str  # as device_name gives it: devices draw different numbers for one seed

    @property
    def size(self) -> int:
        """Numbers that one rank draws."""
        return sum(map(math.prod, self.shapes))


class Noise(Protocol):
    """A source of standard normal tensors; different draws and different ranks get independent ones.

    is_reproducible: whether the same draw gives the same noise again.
    """

    is_reproducible: bool

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Iterator[Tensor]]:
        """For each of the draw's shapes its independent N(0, 1) numbers, float32 on `device`, in flat pieces.

        A piece is overwritten when the next one is asked for; the pieces of a shape are taken before the next shape.
        """
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

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Iterator[Tensor]]:
        key = (*self._key(draw), rank)
        if device.type == "cuda":
            seed = keyed_random.key_bits("noise", *key) >> 65  # torch takes 63 bits
            cuda_generator = torch.Generator(device).manual_seed(seed)
            piece = torch.empty(min(_GPU_PIECE, draw.size), device=device)
            return _pieces(draw.shapes, lambda: piece.normal_(generator=cuda_generator))
        # torch's CPU generator uses 32 bits of its seed: with one key per rank and step those would repeat.
        bits = np.random.SFC64(keyed_random.key_bits("noise", *key))  # half the time of keyed_random's Philox

        def words(number: int) -> Words:
            return bits.random_raw((number + 1) // 2).view(np.int32)[:number]

        return _pieces(draw.shapes, _Normal(draw.size, words, torch.float32, device))

    def noise_id(self, draw: Draw) -> str:
        return f"{keyed_random.key_bits('noise id', *self._key(draw)):032x}"

    def seal(self, draw: Draw, digest: bytes) -> bytes:
        key = keyed_random.key_bits("seal of sums", *self._key(draw))
        return hmac.digest(key.to_bytes(16, "little"), digest, "sha256")

    def _key(self, draw: Draw) -> tuple[int | str, ...]:
        """All that the noise depends on: where one of these differs, noise and id are others, and independent."""
        return keyed_random.DERIVATION, self._seed, draw.step, draw.world_size, draw.device, str(draw.shapes)


class SecureNoise:
    """Fresh noise from the operating system's generator on every call, transformed in float64."""

    is_reproducible = False

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Iterator[Tensor]]:
        def words(number: int) -> Words:
            return np.frombuffer(bytearray(os.urandom(4 * number)), dtype=np.int32)

        return _pieces(draw.shapes, _Normal(draw.size, words, torch.float64, device))

    def noise_id(self, draw: Draw) -> str:
        return secrets.token_hex(16)

    def seal(self, draw: Draw, digest: bytes) -> None:
        return None


def device_name(device: torch.device) -> str:
    """What draws on `device`: a GPU's model, since the numbers of one seed differ between models."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class _Normal:
    """Every call gives the next independent N(0, 1) numbers, always in one place: the Box-Muller transform.

    size: how many will be used of all calls together; at most `_PIECE` come at a time.
    words: gives as many uniform words as it is asked for.
    dtype: in which they are transformed.
    """

    def __init__(self, size: int, words: Callable[[int], Words], dtype: torch.dtype, device: torch.device) -> None:
        num_pairs = (min(size, _PIECE) + 1) // 2
        self._words = words
        self._device = device
        self._work = torch.empty(2, num_pairs, dtype=dtype)
        self._numbers = torch.empty(2, num_pairs)

    def __call__(self) -> Tensor:
        self._work.view(-1).copy_(torch.from_numpy(self._words(self._work.numel())))
        radius, angle = self._work
        _to_uniform(radius, self._words).log_().mul_(-2).sqrt_()
        angle.add_(0.5).mul_(math.pi / _HALF_RANGE)
        for numbers, function in zip(self._numbers, (torch.cos, torch.sin), strict=True):
            numbers.copy_(function(angle).mul_(radius))
        return self._numbers.view(-1).to(self._device)


def _to_uniform(word: Tensor, more_words: Callable[[int], Words]) -> Tensor:
    """Words to numbers of (0, 1), in place: |word| / 2^31, with a fraction where a word is small.

    Their logarithm makes the tails, for which steps of 2^-31 would be coarse.
    """
    word.abs_()
    if word.min() < _FINE:
        is_small = word < _FINE
        fraction = torch.from_numpy(more_words(int(is_small.sum()))).to(word.dtype).add_(0.5).div_(2 * _HALF_RANGE)
        word[is_small] = (word[is_small] + fraction).abs()  # 0 has half the chance of another |word|, and half its room
    return word.div_(_HALF_RANGE).clamp_(max=1 - torch.finfo(word.dtype).eps / 2)


def _pieces(shapes: Iterable[Shape], draw_piece: Callable[[], Tensor]) -> Iterator[Iterator[Tensor]]:
    """For each shape flat pieces that together have its size, cut from pieces drawn when they are needed."""
    left = torch.empty(0)

    def take(number: int) -> Iterator[Tensor]:
        nonlocal left
        while number:
            if not len(left):
                left = draw_piece()
            piece, left = left[:number], left[number:]
            number -= len(piece)
            yield piece

    return (take(math.prod(shape)) for shape in shapes)
