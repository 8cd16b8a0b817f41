"""The objective of a diffusion model: find what was mixed into the latents of an image, told its caption.

Ho et al., arXiv 2006.11239; predicted is the noise, the velocity (Salimans and Ho, arXiv 2202.00512) or the clean
latents, as the schedule of the model says. Min-SNR weights: Hang et al., arXiv 2303.09556.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.latent_data import one_view
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SDXL_KEYS = {"pooled": "text_embeds", "time_ids": "time_ids"}
"""Of a batch -> of what the UNet of SDXL is told beside the states."""


class Denoising(Objective):
    """Mean squared error of the prediction, over channels and pixels; each example has a timestep and noise of its own.

    Batches have `latents` float32 [B, C, h, w], scaled as the autoencoder says, and `input_ids` int64 [B, L] or
    `text_states` [B, L, d]; for SDXL also `pooled` [B, p] and `time_ids` [B, 6]. In place of latents they may have
    `views` of each image (privlm.diffusion.latent_data), of which a step takes one.

    scheduler: of diffusers; its noise schedule and prediction type count.
    settings: a DenoisingConfig (privlm.diffusion.denoising_schema) or any object with its fields.
    empty: what stands for no caption, a row of input_ids [L] or of text_states [L, d] as the batches have; needed
        where settings.caption_dropout is not 0.
    """

    def __init__(self, scheduler: Any, settings: Any, *, empty: Tensor | None = None) -> None:
        self.prediction_type = scheduler.config.prediction_type
        assert self.prediction_type in PREDICTIONS, self.prediction_type
        assert not settings.caption_dropout or empty is not None, "an empty caption stands for those left out"
        self.settings = settings
        self.empty = empty
        self.signal = scheduler.alphas_cumprod.to(torch.float32)
        """Share of the signal's variance at each timestep, [T]."""

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """The loss of each example; `model` is a Denoiser."""
        assert isinstance(model, Denoiser)
        batch = one_view(batch, rng)
        return PerExample(self.loss_of(model, batch["latents"], self.states(model, batch, rng), rng, added_of(batch)))

    def states(self, model: Denoiser, batch: Batch, rng: ExampleRandom) -> Tensor:
        """Of the captions, [B, L, d]; a share of settings.caption_dropout is left out."""
        key = "text_states" if "text_states" in batch else "input_ids"
        captions = self._some_left_out(batch[key], rng)
        return captions if key == "text_states" else model.states(captions)

    def loss_of(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        states: Tensor,
        rng: ExampleRandom,
        added: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """[B], of `latents` [B, C, h, w] told `states` [B, L, d]."""
        timesteps, noise = self.draw(latents, rng)
        noisy, target = self.mix(latents, noise, timesteps)
        predicted = denoiser(noisy, timesteps, states, added)
        loss = (predicted.float() - target.float()).square().flatten(1).mean(dim=1)
        return loss * self.weights(timesteps)

    def draw(self, latents: Tensor, rng: ExampleRandom) -> tuple[Tensor, Tensor]:
        """Timesteps [B] and noise as `latents`, each of a stream of its own."""
        timesteps = rng.integers(0, len(self.signal), device=latents.device, stream="timestep")
        noise = rng.normal(tuple(latents.shape[1:]), device=latents.device)
        if self.settings.noise_offset:
            offset = rng.normal((latents.shape[1], 1, 1), device=latents.device, stream="noise offset")
            noise = noise + self.settings.noise_offset * offset
        return timesteps, noise

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents and what is to be predicted of them, both as `latents`."""
        signal = self.signal.to(latents.device)[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        if self.prediction_type == "epsilon":
            return noisy, noise
        if self.prediction_type == "sample":
            return noisy, latents
        return noisy, signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def weights(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights by the prediction, [B]; ones where settings.snr_gamma is null.

        Errors of the clean latents count min(SNR, gamma) times, so that of the noise count that over SNR, and of the
        velocity that over SNR + 1. Where no signal is left the noise is the input itself: its weight is the limit, 1.
        """
        signal = self.signal.to(timesteps.device)[timesteps]
        if self.settings.snr_gamma is None:
            return torch.ones_like(signal)
        snr = signal / (1 - signal)
        clipped = snr.clamp(max=self.settings.snr_gamma)
        if self.prediction_type == "sample":
            return clipped
        if self.prediction_type == "v_prediction":
            return clipped / (snr + 1)
        return torch.where(snr > 0, clipped / snr, torch.ones_like(snr))

    def _some_left_out(self, captions: Tensor, rng: ExampleRandom) -> Tensor:
        if not self.settings.caption_dropout:
            return captions
        assert self.empty is not None
        left_out = rng.uniform(device=captions.device, stream="caption dropout") < self.settings.caption_dropout
        left_out = left_out.view(-1, *[1] * (captions.ndim - 1))
        return torch.where(left_out, self.empty.to(captions.device), captions)


def added_of(batch: Batch) -> dict[str, Tensor] | None:
    """What the UNet of SDXL is told beside the states; None for others."""
    added = {told: batch[name] for name, told in SDXL_KEYS.items() if name in batch}
    return added or None
