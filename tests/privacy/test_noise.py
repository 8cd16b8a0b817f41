"""Noise sources: the right distribution, independent streams, ids that name what was drawn."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from privlm.privacy.noise import Draw, Noise, ReproducibleNoise, SecureNoise


def place(*shapes: tuple[int, ...], step: int = 0, world_size: int = 1) -> Draw:
    return Draw(step, shapes, world_size, "cpu")


def draw(noise: Noise, *shape: int, step: int = 0, rank: int = 0) -> torch.Tensor:
    (z,) = noise.sample(place(shape, step=step), rank, torch.device("cpu"))
    return z


@pytest.mark.parametrize("noise", [ReproducibleNoise(0), SecureNoise()], ids=["reproducible", "secure"])
def test_standard_normal(noise: Noise) -> None:
    z = draw(noise, 1000, 300)
    assert z.dtype == torch.float32
    assert z.shape == (1000, 300)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-6
    assert (z.abs() > 3).double().mean() == pytest.approx(2 * stats.norm.sf(3), rel=0.2)
    neighbours = np.corrcoef(z[:, :-1].flatten(), z[:, 1:].flatten())[0, 1]
    halves = np.corrcoef(z[:500].flatten(), z[500:].flatten())[0, 1]
    assert abs(neighbours) < 0.015
    assert abs(halves) < 0.015


@pytest.mark.parametrize("noise", [ReproducibleNoise(0), SecureNoise()], ids=["reproducible", "secure"])
def test_scalars_and_odd_sizes(noise: Noise) -> None:
    assert draw(noise).shape == ()
    assert draw(noise, 3).isfinite().all()


def test_reproducible_noise_is_a_function_of_its_key() -> None:
    def drawn(seed: int, step: int, rank: int) -> list[torch.Tensor]:
        return list(ReproducibleNoise(seed).sample(place((50,), (50,), step=step), rank, torch.device("cpu")))

    keys = list(itertools.product((0, 2**127), (0, 1), (0, 1)))
    first = [z for key in keys for z in drawn(*key)]
    again = [z for key in keys for z in drawn(*key)]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for one, other in itertools.combinations(first, 2):
        assert not (one == other).any()


def test_reproducible_ids_name_seed_and_step() -> None:
    def noise_id(seed: int, step: int) -> str:
        return ReproducibleNoise(seed).noise_id(place((3,), step=step))

    assert noise_id(4, 7) == noise_id(4, 7)
    assert len({noise_id(seed, step) for seed in range(5) for step in range(5)}) == 25


def test_secure_noise_never_repeats() -> None:
    noise = SecureNoise()
    assert not (draw(noise, 50) == draw(noise, 50)).any()
    assert noise.noise_id(place((50,))) != noise.noise_id(place((50,)))
