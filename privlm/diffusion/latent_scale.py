"""The scale of latents, as the settings of a VAE name it: what a UNet sees is not what the VAE gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScale:
    """scaled = (latents - mean) / std * factor, in float32. mean, std: [1, C, 1, 1], of few VAEs other than 0 and 1."""

    factor: float
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, vae: Any) -> LatentScale:
        """Of an AutoencoderKL: scaling_factor, and shift_factor or latents_mean and latents_std where it has them."""
        settings, channels = vae.config, vae.config.latent_channels
        shift = getattr(settings, "shift_factor", None) or 0.0
        mean = getattr(settings, "latents_mean", None) or [shift] * channels
        std = getattr(settings, "latents_std", None) or [1.0] * channels
        return cls(float(settings.scaling_factor), *(torch.tensor(one).view(1, -1, 1, 1) for one in (mean, std)))

    def scale(self, latents: Tensor) -> Tensor:
        """What a UNet is given, [B, C, h, w], of what a VAE has encoded."""
        return (latents.float() - self.mean.to(latents.device)) / self.std.to(latents.device) * self.factor

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse, for a VAE to decode."""
        return latents.float() / self.factor * self.std.to(latents.device) + self.mean.to(latents.device)
