"""The privacy engine on a UNet: clipped sums are those of one ordinary backward pass for each record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from privacy.naive import assert_agrees
from tiny_pipelines import disturb, opened
from torch import Tensor, nn

from privlm.config import AdapterConfig, defaults
from privlm.diffusion.lora import adapt, teacher

pytestmark = pytest.mark.medium

NUM_RECORDS = 4


def adapter(name: str, **changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", name, **changes)


LORA = {"rank": 2, "alpha": 4.0}
ADAPTERS = {
    "attention": adapter("lora", **LORA),
    "convolutions": adapter("lora", **LORA, target_modules=["to_q", "conv1", "conv_in", "time_embedding.linear_1"]),
    "full": adapter("full"),
}


class OfUNet(nn.Module):
    """As a denoiser: the UNet, and the text encoder where it trains too."""

    def __init__(self, unet: Any, text_encoder: Any = None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        states = batch["states"] if self.text_encoder is None else self.text_encoder(batch["input_ids"])[0]
        added = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]} if "pooled" in batch else None
        return self.unet(batch["noisy"], batch["time"], states, added_cond_kwargs=added).sample


def batch(ours: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    found = {
        "noisy": torch.randn(NUM_RECORDS, 4, 8, 8),
        "noise": torch.randn(NUM_RECORDS, 4, 8, 8),
        "time": torch.randint(0, 1000, (NUM_RECORDS,)),
        "states": torch.randn(NUM_RECORDS, 5, ours.state_size),
        "input_ids": torch.randint(0, 50, (NUM_RECORDS, 6)),
    }
    if ours.family == "sdxl":
        found |= {"pooled": torch.randn(NUM_RECORDS, 12), "time_ids": torch.randint(0, 32, (NUM_RECORDS, 6)).float()}
    return found


def denoising(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch) - batch["noise"]).square().flatten(1).mean(1)


def distilling(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Two forwards of one UNet, the second without its pairs."""
    with torch.no_grad(), teacher(model.unet):
        fixed = model(batch)
    return (model(batch) - fixed).square().flatten(1).mean(1) + denoising(model, batch)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_unet_is_clipped_record_by_record(name: str) -> None:
    ours = opened()
    unet = adapt(ours.unet, ADAPTERS[name], 0)
    assert_agrees(OfUNet(disturb(unet, 0.1)).train(), denoising, batch(ours))


@pytest.mark.parametrize("name", ["attention", "full"])
def test_the_unet_of_sdxl_is_too(name: str) -> None:
    ours = opened("sdxl")
    assert_agrees(OfUNet(disturb(adapt(ours.unet, ADAPTERS[name], 0), 0.1)).train(), denoising, batch(ours))


def test_a_text_encoder_beside_it_is_too() -> None:
    ours = opened()
    encoder = adapt(ours.text_encoder, adapter("lora", **LORA), 1)
    model = OfUNet(disturb(adapt(ours.unet, ADAPTERS["attention"], 0)), disturb(encoder))
    assert_agrees(model.train(), denoising, batch(ours))


def test_a_teacher_within_the_loss_leaves_it_so() -> None:
    ours = opened()
    model = OfUNet(disturb(adapt(ours.unet, ADAPTERS["attention"], 0)))
    assert_agrees(model.train(), distilling, batch(ours))
