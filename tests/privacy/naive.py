"""The reference that the engine is held against: one ordinary backward pass per record."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from privlm.privacy.engine import ClippingStatistics, PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import ReproducibleNoise

Losses = Callable[[nn.Module, Any], Tensor]


def records(batch: dict[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in batch.items()}


def naive(
    model: nn.Module, losses: Losses, batch: dict[str, Tensor], clipping_norm: float
) -> tuple[Tensor, list[Tensor]]:
    """Per-record norms [B] and the clipped sum of every trainable parameter, in float64."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    norms = []
    for i in range(len(next(iter(batch.values())))):
        loss_1 = losses(model, records(batch, slice(i, i + 1)))
        gradients = torch.autograd.grad(loss_1.sum(), parameters, allow_unused=True)
        full = [
            torch.zeros_like(total) if gradient is None else gradient.double()
            for gradient, total in zip(gradients, sums, strict=True)
        ]
        norm = torch.stack([gradient.square().sum() for gradient in full]).sum().sqrt()
        norms.append(norm)
        for total, gradient in zip(sums, full, strict=True):
            total.add_(gradient, alpha=min(1.0, clipping_norm / max(float(norm), 1e-30)))
    return torch.stack(norms), sums


def clipped_sums(
    engine: PrivacyEngine, losses: Losses, batch: dict[str, Tensor], micro_batch_size: int = 10**6, step: int = 0
) -> tuple[list[ClippingStatistics], list[Tensor]]:
    """The same from the engine: a release without noise and with expected batch size 1."""
    num_records = len(next(iter(batch.values())))
    statistics = []
    for start in range(0, num_records, micro_batch_size):
        statistics.append(engine.backward(losses, records(batch, slice(start, start + micro_batch_size))))
    release(engine, step=step, noise_multiplier=0.0)
    return statistics, [parameter.grad for parameter in engine.model.parameters() if parameter.requires_grad]


def release(engine: PrivacyEngine, **changes: Any) -> None:
    settings = {
        "step": 0,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.0,
        "expected_batch_size": 1.0,
        "world": None,
        "ledger": Ledger(),
    }
    engine.release(changes.pop("noise", ReproducibleNoise(0)), **(settings | changes))


def assert_agrees(
    model: nn.Module, losses: Losses, *batches: dict[str, Tensor], share_clipped: float = 0.5, reference: Any = None
) -> PrivacyEngine:
    """Norms and clipped sums of the engine equal the reference in every step, with about `share_clipped` of the records
    of the first clipped. Returns the engine, detached.

    reference: a model of the same weights, where `model` itself cannot be differentiated in the ordinary way.
    """
    reference = reference or model
    norm_B, _ = naive(reference, losses, batches[0], 1.0)
    clipping_norm = float(norm_B.quantile(1 - share_clipped))
    engine = PrivacyEngine(model, clipping_norm=clipping_norm)
    for step, batch in enumerate(batches):
        norm_B, expected = naive(reference, losses, batch, clipping_norm)
        (statistics,), sums = clipped_sums(engine, losses, batch, step=step)
        torch.testing.assert_close(statistics.norms.double(), norm_B, rtol=1e-5, atol=0)
        scale = max(float(total.abs().max()) for total in expected)
        for total, reference_sum in zip(sums, expected, strict=True):
            torch.testing.assert_close(total.double(), reference_sum, rtol=1e-5, atol=1e-5 * scale)
        for parameter in model.parameters():
            parameter.grad = None
    engine.detach()
    return engine
