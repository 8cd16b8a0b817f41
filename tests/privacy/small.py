"""A small model with a batch for it, as most tests of the engine need one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Tensor]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def small_batch(num_records: int = 64) -> Batch:
    torch.manual_seed(1)
    return {"x": torch.randn(num_records, 4, 6), "label": torch.randint(0, 3, (num_records,))}


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["x"]).mean(1), batch["label"], reduction="none")


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
