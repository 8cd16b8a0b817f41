"""The engine in two real processes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from naive import release
from torch import nn

from privlm.errors import UsageError
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import Draw, ReproducibleNoise, SecureNoise
from privlm.privacy.release import World
from privlm.privacy.sampling import Indices, PoissonSampler, share
from privlm.privacy.watch import MechanismError

pytestmark = pytest.mark.medium

NUM_RECORDS = 40


def model_and_records() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(500, 500, bias=False), torch.randn(NUM_RECORDS, 500)


def clip(engine: PrivacyEngine, records: torch.Tensor) -> None:
    engine.backward(lambda model, records: model(records).square().mean(1), records)


def from_rank_0(indices: Indices) -> Indices:
    shared = [indices]
    dist.broadcast_object_list(shared)
    return shared[0]


class OnOneProcessOnly(ReproducibleNoise):
    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[torch.Tensor]:
        return ((rank == 0) * z for z in super().sample(draw, rank, device))


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world = World(rank, 2, dist.all_reduce)
    ledger = Ledger(folder / "ledger.jsonl") if rank == 0 else None
    model, records = model_and_records()
    engine = PrivacyEngine(model, clipping_norm=0.5)
    with pytest.raises(UsageError, match="several ranks"):
        release(engine, world=None)

    global_batch = PoissonSampler(NUM_RECORDS, 0.5, seed=None, broadcast=from_rank_0).indices(0)
    clip(engine, records[share(global_batch, rank, 2)])
    release(engine, step=0, noise_multiplier=0.0, world=world, ledger=ledger)
    clipped_sum = model.weight.grad
    release(engine, step=1, noise=ReproducibleNoise(1), noise_multiplier=2.0, world=world, ledger=ledger)
    reproducible = model.weight.grad
    release(engine, step=2, noise=SecureNoise(), noise_multiplier=2.0, world=world, ledger=ledger)
    torch.save([global_batch, clipped_sum, reproducible, model.weight.grad], folder / f"rank{rank}.pt")
    with pytest.raises(MechanismError, match="process 1 of 2 adds 0 times its share"):
        release(engine, step=3, noise=OnOneProcessOnly(2), noise_multiplier=2.0, world=world, ledger=ledger)
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))

    global_batch, clipped_sum, reproducible, secure = first
    model, records = model_and_records()
    alone = PrivacyEngine(model, clipping_norm=0.5)
    clip(alone, records[global_batch])
    release(alone, noise_multiplier=0.0)
    torch.testing.assert_close(clipped_sum, model.weight.grad, rtol=1e-5, atol=1e-6)
    for noise in (reproducible, secure):
        assert noise.var() == pytest.approx(1.0, rel=0.02)  # (sigma C)^2, 250,000 numbers
    assert [segment.steps for segment in Ledger(tmp_path / "ledger.jsonl").segments()] == [1, 3]
