"""The objective of the small autoencoder: its latents are principal components, and images come back from these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from privlm.diffusion.tiny.components import Components
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample

LOG_VARIANCE = -12.0
"""Of the posterior: next to nothing is drawn."""

LATENT_NOISE = 0.1
"""Of the latents' deviation: an image comes back from latents that are not quite right, as generated ones are."""


class Autoencoding(Objective):
    """Errors of the encoder's latents, of images from true and noisy components, and of images that went both ways."""

    def __init__(self, components: Components) -> None:
        self.components = components

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """Batches have `images` float32 [B, 3, H, W] in [-1, 1]; model: an AutoencoderKL."""
        autoencoder: Any = model
        images = batch["images"]
        true = self.components.encode(images)
        posterior = autoencoder.encode(images).latent_dist
        noise = LATENT_NOISE * self.components.deviation * rng.normal(tuple(true.shape[1:]))
        both = autoencoder.decode(torch.cat([posterior.mean, true + noise])).sample
        around, down = both.chunk(2)
        parts = {
            "latents": _error(posterior.mean, true),
            "around": _error(around, images),
            "down": _error(down, images),
            "variance": 1e-3 * _error(posterior.logvar, torch.full_like(posterior.logvar, LOG_VARIANCE)),
        }
        return PerExample(torch.stack(list(parts.values())).sum(dim=0), parts=parts)


class Images:
    """TrainingData of images, float32 [N, 3, H, W]."""

    lengths = None

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> dict[str, Tensor]:
        return {"images": self.images[torch.from_numpy(indices)]}


def _error(found: Tensor, true: Tensor) -> Tensor:
    """Mean squared error of each example, [B]."""
    return (found - true).square().flatten(1).mean(dim=1)
