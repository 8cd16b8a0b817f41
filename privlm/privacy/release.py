"""The release of noised sums, one function for records (`PrivacyEngine`) and for clients (a federated server).

Guarantee: with sums to which each unit of the setting (record, client) adds at most the clipping norm C, in the norm
over all tensors together, `release` gives (sum over ranks + N(0, (sigma C)^2)) / expected batch size: the Gaussian
mechanism that the ledger accounts for, whatever is done with the result. The account is on disk before any noise is
drawn, and nothing is given where the noise or a sum is not what the account says.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privlm.errors import UsageError
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.noise import Draw, Noise, device_name
from privlm.privacy.watch import ReleaseCheck, ReleaseEvidence

_NUM_CHECKED = 1024  # noise values of each tensor that the checks look at
_NUM_DIGESTED = 16  # values of each sum that tell it from another


@dataclass(frozen=True)
class World:
    """The ranks that share one logical step. `all_reduce` sums a tensor over them in place."""

    rank: int
    size: int
    all_reduce: Callable[[Tensor], object]


def release(
    sums: Sequence[Tensor],
    noise: Noise,
    *,
    step: int,
    setting: Setting,
    num_units: int,
    check: ReleaseCheck,
    world: World | None,
    ledger: Ledger | None,
) -> Sequence[Tensor]:
    """Accounts for one logical step, adds noise to `sums`, sums them over ranks and divides by the expected batch size.

    Call it for every step, also where nobody took part: an empty batch releases pure noise. Every rank calls it and
    adds noise of variance (sigma C)^2 / W from its own stream; rank 0 writes the ledger first.

    Args:
        sums: of this rank's clipped vectors, float32 and contiguous, one tensor per parameter; changed in place and
            given back.
        step: must grow from call to call of one `check`, so that noise is never used twice.
        setting: its expected batch size is sampling rate times number of units, never the size that was drawn.
        num_units: in this rank's sums.
        check: of this mechanism, for all its releases.
        world: None in a run of one process.
        ledger: None on ranks other than 0.

    Raises ValueError for a step that was released already and for a missing ledger, UsageError where the noise has
    been released with other sums, MechanismError where the noise or the sum is not what the ledger says
    (privlm.privacy.watch).
    """
    world = world or _single_process()
    check.refuse_earlier_step(step)
    if world.rank == 0 and ledger is None:
        raise ValueError("rank 0 needs a ledger: no noise is drawn without an account of it")

    norm_K = torch.stack([total.norm() for total in sums])
    device = sums[0].device
    draw = Draw(step, tuple(tuple(total.shape) for total in sums), world.size, device_name(device))
    if ledger is not None and world.rank == 0:
        seal = noise.seal(draw, _digest(sums, norm_K)) if noise.is_reproducible else None
        ledger.record(step, setting, noise.noise_id(draw), device=draw.device, sums_digest=seal)

    std = setting.noise_multiplier * setting.clipping_norm / math.sqrt(world.size)
    drawn, added = [], []
    for total, pieces in zip(sums, noise.sample(draw, world.rank, device), strict=True):
        before = _first_values(total, _NUM_CHECKED).clone()
        drawn.append(_add(total, pieces, std))
        added.append(_first_values(total, _NUM_CHECKED) - before)
    noise_drawn, noise_added = torch.cat(drawn).cpu().numpy(), torch.cat(added).cpu().double()
    mine = ReleaseEvidence(
        num_writers=1,
        first_noise=float(noise_drawn[0]),
        second_noise=float(noise_drawn[-1]),
        squared_noise=float((noise_added / std).square().sum()) if std else 0.0,
        correlation=check.correlation(noise_drawn),
        clipped_sum=float(norm_K.norm()),
        num_units=num_units,
    )
    check.see(step, _of_all_ranks(mine, world, device), len(noise_added) if std else 0)

    for total in sums:
        if world.size > 1:
            world.all_reduce(total)
        total.div_(setting.expected_batch_size)
    return sums


def _add(total: Tensor, pieces: Iterable[Tensor], std: float) -> Tensor:
    """Adds `std` times the numbers of all pieces to `total`, in place; returns the first of them for the checks."""
    flat = total.view(-1)
    first, start = [flat[:0]], 0
    for z in pieces:
        flat[start : start + len(z)].add_(z, alpha=std)
        if start < _NUM_CHECKED:
            first.append(z[: _NUM_CHECKED - start].clone())
        start += len(z)
    assert start == len(flat), "the noise source drew another number of values than it was asked for"
    return torch.cat(first)


def _of_all_ranks(mine: ReleaseEvidence, world: World, device: torch.device) -> list[ReleaseEvidence]:
    """Every rank sees the evidence of all, so that all of them stop together."""
    table = torch.zeros(world.size, len(mine), device=device)
    table[world.rank] = torch.tensor(mine)
    world.all_reduce(table)
    return [ReleaseEvidence(*row) for row in table.tolist()]


def _digest(sums: Sequence[Tensor], norm_K: Tensor) -> bytes:
    """What tells these sums from others of their shapes: equal for the same step taken again, bit for bit.

    It tells of private data, so that it must never be written but sealed.
    """
    values = torch.cat([norm_K, *(_first_values(total, _NUM_DIGESTED) for total in sums)])
    return hashlib.sha256(values.cpu().numpy().tobytes()).digest()


def _first_values(x: Tensor, number: int) -> Tensor:
    return x.flatten()[:number]


def _single_process() -> World:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UsageError("several ranks are running: give release() the world, or each would train a model of its own")
    return World(rank=0, size=1, all_reduce=lambda tensor: None)
