"""Denoising diffusion (Ho et al., NeurIPS 2020) as an objective, on a tiny UNet of diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.regression import settings, trained
from torch import Tensor, nn

from privlm.training.objective import ExampleRandom, Objective, PerExample

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

NUM_IMAGES, SIZE, NUM_TIMES = 32, 8, 100


class Images:
    """Bright squares on a dark ground."""

    lengths = None

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = torch.full((NUM_IMAGES, 1, SIZE, SIZE), -1.0)
        for image, (row, column) in zip(self.images, rng.integers(0, SIZE - 3, (NUM_IMAGES, 2)), strict=True):
            image[0, row : row + 3, column : column + 3] = 1.0

    def __len__(self) -> int:
        return NUM_IMAGES

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"image": self.images[indices]}


class Denoising(Objective):
    """Noise and time of an example are its own draws, so that they stay the same in any micro-batch."""

    def __init__(self) -> None:
        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=NUM_TIMES)

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        image = batch["image"]
        noise = rng.normal(image.shape[1:], image.device)
        time = rng.integers(0, NUM_TIMES, device=image.device)
        predicted = model(self.scheduler.add_noise(image, noise, time), time).sample
        return PerExample((predicted - noise).square().flatten(1).mean(1))


def unet() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = diffusers.UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return model


def run(steps: int, micro_batch_size: int = 8) -> Any:
    config = settings(optimizer="adamw", learning_rate=3e-3, batch_size=8, micro_batch_size=micro_batch_size)
    return trained(Denoising(), steps, unet(), data=Images(), config=config)


@pytest.mark.medium
def test_tiny_unet_learns_to_denoise() -> None:
    losses = [row["loss"] for row in run(60).train]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])


def test_noise_and_time_do_not_depend_on_the_micro_batch() -> None:
    whole, cut = run(2, 8), run(2, 3)
    assert [row["loss"] for row in whole.train] == pytest.approx([row["loss"] for row in cut.train], rel=1e-4)
    torch.testing.assert_close(torch.tensor(whole.weights), torch.tensor(cut.weights), rtol=0, atol=1e-3)
