"""Noise sources: the right distribution, independent streams, ids that name what was drawn."""

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from privlm.privacy import keyed_random
from privlm.privacy.noise import _CHUNK as CHUNK
from privlm.privacy.noise import Draw, Noise, ReproducibleNoise, SecureNoise

ROOT = Path(__file__).parents[2]


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
def test_scalars_odd_and_empty_sizes(noise: Noise) -> None:
    assert draw(noise).shape == ()
    assert draw(noise, 3).isfinite().all()
    assert draw(noise, 0, 3).shape == (0, 3)
    z = draw(noise, 2 * CHUNK + 3)  # of two pieces
    assert z.isfinite().all()
    assert len(z.unique()) > 0.98 * len(z)


@pytest.mark.parametrize("noise", [ReproducibleNoise(0), SecureNoise()], ids=["reproducible", "secure"])
def test_small_and_large_tensors_of_one_release(noise: Noise) -> None:
    shapes = ((3,), (2, 2), (2 * CHUNK - 1,), (), (5,), (3 * CHUNK,), (2,))
    drawn = list(noise.sample(place(*shapes), 0, torch.device("cpu")))
    assert [tuple(z.shape) for z in drawn] == list(shapes)
    together = torch.cat([z.flatten() for z in drawn])
    assert stats.kstest(together.numpy(), "norm").pvalue > 1e-6
    assert len(together.unique()) > 0.98 * len(together)


def test_reproducible_noise_is_a_function_of_its_key() -> None:
    def drawn(seed: int, step: int, rank: int) -> list[torch.Tensor]:
        return list(ReproducibleNoise(seed).sample(place((50,), (50,), step=step), rank, torch.device("cpu")))

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
        drawn = torch.cat([z.flatten() for z in noise.sample(one, 0, torch.device("cpu"))])
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
    assert keyed_random.DERIVATION == 2
    assert draw(ReproducibleNoise(7), 5, step=3).tolist() == pytest.approx(
        [0.66074, 0.70776, 1.64002, 1.37244, -0.5097], abs=1e-5
    )
    assert ReproducibleNoise(7).noise_id(place((5,), step=3)) == "4fea3dabcfd0a45d2c4e9a1409f422cc"


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
