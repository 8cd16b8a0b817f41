"""Noise sources: the right distribution, independent streams, ids that name what was drawn."""

import ast
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from privlm.privacy import keyed_random
from privlm.privacy.noise import _PIECE as PIECE
from privlm.privacy.noise import Draw, Noise, ReproducibleNoise, SecureNoise, _to_uniform

ROOT = Path(__file__).parents[2]


def place(*shapes: tuple[int, ...], step: int = 0, world_size: int = 1) -> Draw:
    return Draw(step, shapes, world_size, "cpu")


def draw_all(noise: Noise, of: Draw, rank: int = 0) -> list[torch.Tensor]:
    """Its tensors, each put together from copies of its pieces."""
    sampled = noise.sample(of, rank, torch.device("cpu"))
    flat = [torch.cat([torch.empty(0), *(z.clone() for z in pieces)]) for pieces in sampled]
    return [z.view(shape) for z, shape in zip(flat, of.shapes, strict=True)]


def draw(noise: Noise, *shape: int, step: int = 0, rank: int = 0) -> torch.Tensor:
    (z,) = draw_all(noise, place(shape, step=step), rank)
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
def test_scalars_odd_and_empty_sizes(noise: Noise) -> None:
    assert draw(noise).shape == ()
    assert draw(noise, 3).isfinite().all()
    assert draw(noise, 0, 3).shape == (0, 3)
    z = draw(noise, PIECE + 3)  # of two pieces
    assert z.isfinite().all()
    assert len(z.unique()) > 0.98 * len(z)


@pytest.mark.parametrize("noise", [ReproducibleNoise(0), SecureNoise()], ids=["reproducible", "secure"])
def test_small_and_large_tensors_of_one_release(noise: Noise) -> None:
    shapes = ((3,), (2, 2), (PIECE - 1,), (), (5,), (2 * PIECE - PIECE // 2,), (2,))
    drawn = draw_all(noise, place(*shapes))
    together = torch.cat([z.flatten() for z in drawn])
    assert stats.kstest(together.numpy(), "norm").pvalue > 1e-6
    assert len(together.unique()) > 0.98 * len(together)


@pytest.mark.parametrize("noise", [ReproducibleNoise(0), SecureNoise()], ids=["reproducible", "secure"])
def test_the_two_numbers_of_a_pair_are_independent_also_in_size(noise: Noise) -> None:
    cosine, sine = draw(noise, 4 * PIECE).view(-1, 2, PIECE // 2).unbind(1)
    same_place = np.corrcoef(cosine.flatten().square(), sine.flatten().square())[0, 1]
    assert abs(same_place) < 0.015
    assert abs(np.corrcoef(cosine[:-1].flatten().square(), cosine[1:].flatten().square())[0, 1]) < 0.015


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_fill_the_unit_interval_and_its_ends(dtype: torch.dtype) -> None:
    """Never 0 or 1, and evenly next to 0, where the logarithm makes the tails."""
    rng = np.random.default_rng(0)

    def words(number: int, low: int = -(2**31), high: int = 2**31) -> np.ndarray:
        return rng.integers(low, high, number).astype(np.int32)

    def uniform(drawn: np.ndarray) -> np.ndarray:
        return _to_uniform(torch.from_numpy(drawn).to(dtype), words).double().numpy()

    assert stats.kstest(uniform(words(100_000)), "uniform").pvalue > 1e-6
    near_zero = uniform(words(100_000, -8, 8 + 1)) * 2.0**31
    assert stats.kstest(near_zero[near_zero < 7.5], stats.uniform(0, 7.5).cdf).pvalue > 1e-6
    assert len(np.unique(near_zero)) > 0.9 * len(near_zero)
    ends = uniform(np.array([0, 1, -1, 2**31 - 1, -(2**31), -(2**31) + 1], np.int32))
    assert ends.min() > 0
    assert ends.max() < 1


def test_the_tails_reach_beyond_nine_standard_deviations() -> None:
    nearest = _to_uniform(torch.zeros(1, dtype=torch.float64), lambda number: np.zeros(number, np.int32))
    assert float(nearest.log().mul(-2).sqrt()) == pytest.approx(math.sqrt(128 * math.log(2)))  # 2^-64


def test_reproducible_noise_is_a_function_of_its_key() -> None:
    def drawn(seed: int, step: int, rank: int) -> list[torch.Tensor]:
        return draw_all(ReproducibleNoise(seed), place((50,), (50,), step=step), rank)

    keys = list(itertools.product((0, 2**127), (0, 1), (0, 1)))
    first = [z for key in keys for z in drawn(*key)]
    again = [z for key in keys for z in drawn(*key)]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for one, other in itertools.combinations(first, 2):
        assert not (one == other).any()


def test_what_gives_other_noise_gives_another_id() -> None:
    """And what gives the same noise the same: an id that says less or more than the noise would miscount releases."""
    base = place((50,), (3,))
    draws = [base, place((50,), (3,), step=1), place((50,), (3,), world_size=2), replace(base, device="NVIDIA H200")]
    draws += [place((50,)), place((3,), (50,)), place((51,), (3,)), place((50, 1), (3,))]
    noises: dict[str, torch.Tensor] = {}
    for seed, one in itertools.product((0, 1, 2**128 - 1), draws):
        noise = ReproducibleNoise(seed)
        assert noise.noise_id(one) == ReproducibleNoise(seed).noise_id(one)
        drawn = torch.cat([z.flatten() for z in draw_all(noise, one)])
        assert not any((drawn[:50, None] == other[None, :50]).any() for other in noises.values())
        noises[noise.noise_id(one)] = drawn
    assert len(noises) == 3 * len(draws)


def test_the_derivation_is_a_part_of_noise_and_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before, id_before = draw(ReproducibleNoise(0), 50), ReproducibleNoise(0).noise_id(place((50,)))
    monkeypatch.setattr(keyed_random, "DERIVATION", keyed_random.DERIVATION + 1)
    assert not (draw(ReproducibleNoise(0), 50) == before).any()
    assert ReproducibleNoise(0).noise_id(place((50,))) != id_before


def test_noise_of_this_derivation_stays_what_it_is() -> None:
    """Where this fails the way from keys to noise has changed: raise keyed_random.DERIVATION with it."""
    assert keyed_random.DERIVATION == 3
    assert draw(ReproducibleNoise(7), 5, step=3).tolist() == pytest.approx(
        [-0.70274, 1.64465, 0.49755, -0.67635, 0.92741], abs=1e-5
    )
    assert ReproducibleNoise(7).noise_id(place((5,), step=3)) == "8ca4a7fc61cc7262b1f90ce8ae7684ac"


@pytest.mark.parametrize("part", [0.5, None, 1.0])
def test_a_key_is_made_of_names_and_whole_numbers(part: object) -> None:
    assert keyed_random.key_bits("purpose", np.int64(3)) == keyed_random.key_bits("purpose", 3)
    with pytest.raises(TypeError):
        keyed_random.key_bits("purpose", part)


def test_no_two_files_draw_for_a_purpose_of_one_name() -> None:
    """And every key begins with the name of its purpose."""
    keyed = ("keyed_random.generator", "keyed_random.key_bits")
    files_of: dict[str, set[Path]] = {}
    for path in [*ROOT.glob("privlm/**/*.py"), *ROOT.glob("runners/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in keyed:
                purpose = node.args[0]
                assert isinstance(purpose, ast.Constant), f"{path}, line {node.lineno}: {ast.unparse(node)}"
                files_of.setdefault(purpose.value, set()).add(path)
    assert {"noise", "noise id", "sampling"} <= set(files_of)
    assert {name: files for name, files in files_of.items() if len(files) > 1} == {}


def test_secure_noise_never_repeats() -> None:
    noise = SecureNoise()
    assert not (draw(noise, 50) == draw(noise, 50)).any()
    assert noise.noise_id(place((50,))) != noise.noise_id(place((50,)))
