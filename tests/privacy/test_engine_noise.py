"""The release: one noise per step of the right scale on any number of ranks, accounted before it is drawn."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from naive import clipped_sums, release
from small import gradients, losses, small_batch, small_model
from torch import Tensor, nn

from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import Draw, ReproducibleNoise, SecureNoise
from privlm.privacy.release import World
from privlm.privacy.watch import MechanismError


def wide_model() -> nn.Linear:
    return nn.Linear(1000, 1000, bias=False)


def test_empty_batch_releases_pure_noise_and_is_accounted() -> None:
    model, ledger = wide_model(), Ledger()
    engine = PrivacyEngine(model, clipping_norm=0.5)
    release(engine, noise_multiplier=1.5, expected_batch_size=10.0, ledger=ledger)
    assert gradients(model).std() == pytest.approx(1.5 * 0.5 / 10, rel=5e-3)
    assert [segment.steps for segment in ledger.segments()] == [1]


def simulate(size: int, work: Callable[[World], None]) -> list[BaseException]:
    """Runs `work` once per rank, in threads that meet in all_reduce."""
    barrier, shared, errors = threading.Barrier(size, timeout=60), {}, []

    def all_reduce(rank: int, tensor: Tensor) -> None:
        shared[rank] = tensor.clone()
        barrier.wait()
        tensor.copy_(torch.stack([shared[other] for other in range(size)]).sum(0))
        barrier.wait()

    def run(rank: int) -> None:
        try:
            work(World(rank, size, lambda tensor: all_reduce(rank, tensor)))
        except MechanismError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("source", ["reproducible", "secure"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_noise_variance_does_not_depend_on_the_number_of_ranks(size: int, source: str) -> None:
    models = [wide_model() for _ in range(size)]
    ledger = Ledger()

    def work(world: World) -> None:
        engine = PrivacyEngine(models[world.rank], clipping_norm=0.5)
        noise = ReproducibleNoise(7) if source == "reproducible" else SecureNoise()
        release(engine, noise=noise, noise_multiplier=2.0, world=world, ledger=ledger if world.rank == 0 else None)

    assert not simulate(size, work)
    assert gradients(models[0]).var() == pytest.approx(1.0, rel=0.01)  # (sigma C)^2, 10^6 numbers
    assert all(torch.equal(gradients(model), gradients(models[0])) for model in models)
    assert [segment.steps for segment in ledger.segments()] == [1]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_give_the_clipped_sum_of_one(size: int) -> None:
    batch, alone = small_batch(31), small_model()
    clipped_sums(PrivacyEngine(alone, clipping_norm=0.3), losses, batch)
    models = [small_model() for _ in range(size)]

    def work(world: World) -> None:
        engine = PrivacyEngine(models[world.rank], clipping_norm=0.3)
        if world.rank > 0:  # rank 0 has no records and still takes part
            engine.backward(losses, {name: value[world.rank - 1 :: size - 1] for name, value in batch.items()})
        release(engine, noise_multiplier=0.0, world=world, ledger=Ledger() if world.rank == 0 else None)

    assert not simulate(size, work)
    for model in models:
        torch.testing.assert_close(gradients(model), gradients(alone), rtol=1e-5, atol=1e-6)


class SameOnEveryRank(ReproducibleNoise):
    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        return super().sample(draw, 0, device)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_share_a_generator_are_refused(size: int) -> None:
    def work(world: World) -> None:
        engine = PrivacyEngine(small_model(), clipping_norm=1.0)
        release(engine, noise=SameOnEveryRank(0), world=world, ledger=Ledger())

    assert len(simulate(size, work)) == size


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_all_call_themselves_rank_0_are_refused(size: int) -> None:
    def work(world: World) -> None:
        engine = PrivacyEngine(small_model(), clipping_norm=1.0)
        release(engine, world=World(0, size, world.all_reduce), ledger=Ledger())

    assert len(simulate(size, work)) == size


def test_noise_cannot_be_added_twice() -> None:
    engine = PrivacyEngine(small_model(), clipping_norm=1.0)
    release(engine, step=3)
    for step in (3, 2):
        with pytest.raises(ValueError, match="noise is added once per step"):
            release(engine, step=step)
    release(engine, step=4)


def test_no_noise_without_an_account() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="needs a ledger"):
        release(PrivacyEngine(model, clipping_norm=1.0), ledger=None)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_ledger_that_cannot_be_written_stops_the_release() -> None:
    class FullDisk(Ledger):
        def record(self, *args: Any, **options: Any) -> None:
            raise OSError("No space left on device")

    model = small_model()
    with pytest.raises(OSError, match="No space"):
        release(PrivacyEngine(model, clipping_norm=1.0), ledger=FullDisk())
    assert all(parameter.grad is None for parameter in model.parameters())
