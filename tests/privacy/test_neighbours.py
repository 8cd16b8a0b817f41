"""Removing one record moves the clipped sum by at most the clipping norm, or the engine refuses."""

from collections.abc import Callable

import pytest
import torch
from mixtures import Batch, ways
from naive import release
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.neighbours import NeighbourCheck

WAYS = list(ways())
Losses = Callable[[nn.Module, Batch], Tensor]


def clipped_sum(engine: PrivacyEngine, losses: Losses, batch: Batch) -> Tensor:
    engine.backward(losses, batch)
    engine.num_released = getattr(engine, "num_released", 0) + 1
    release(engine, step=engine.num_released, noise_multiplier=0.0)
    gradients = [p.grad.flatten() for p in engine.model.parameters() if p.requires_grad]
    engine.model.zero_grad()
    return torch.cat(gradients)


SHARE_AND_KNOW_NOTHING = {
    "one row of a table for all",
    "one row of a table for all, its second half",
    "as many positions as records",
    "packed into one row, row 0",
    "packed into one row, all",
}
"""Ways in which records only share what reads no record; they are differentiated once per record."""


def sensitivity(engine: PrivacyEngine, losses: Losses, batch: Batch) -> float:
    """|S(D) - S(D without j)| / C, the largest over j; the clipping norm is 1."""
    torch.manual_seed(1)
    total, size = clipped_sum(engine, losses, batch), len(batch["y"])
    worst = 0.0
    for j in range(size):
        rest = {name: torch.cat([value[:j], value[j + 1 :]]) for name, value in batch.items()}
        torch.manual_seed(1)
        worst = max(worst, float((total - clipped_sum(engine, losses, rest)).norm()))
    return worst


@pytest.mark.parametrize("name", WAYS)
def test_records_that_know_of_each_other_are_refused(name: str) -> None:
    model, losses, batch = ways()[name]
    if name in SHARE_AND_KNOW_NOTHING:
        assert sensitivity(PrivacyEngine(model, clipping_norm=1.0), losses, batch) <= 1.001
        return
    with pytest.raises(UsageError) as refusal:
        sensitivity(PrivacyEngine(model, clipping_norm=1.0), losses, batch)
    assert "tensor(" not in str(refusal.value)


def test_without_the_check_most_of_these_ways_break_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their refusal would show nothing."""
    monkeypatch.setattr(NeighbourCheck, "look", lambda *arguments: None)
    broken = []
    for name, (model, losses, batch) in ways().items():
        try:
            if sensitivity(PrivacyEngine(model, clipping_norm=1.0), losses, batch) > 1.001:
                broken.append(name)
        except (UsageError, RuntimeError):  # refused by structure, or no model for every size
            continue
    assert len(WAYS) >= 40
    assert len(broken) >= 30, sorted(set(WAYS) - set(broken))
