"""Images of prompts: each from a seed of its own, so that they are the same whatever stands beside them in a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privlm.diffusion.conditioning import ENCODERS, Conditioning, at_rest, encode, encode_negative
from privlm.diffusion.latent_scale import LatentScale
from privlm.errors import PrivLMError, UsageError

logger = logging.getLogger("privlm")

CLASSES = {"ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
"""Name of a scheduler (privlm.diffusion.schema.SCHEDULERS) -> its class in diffusers."""


class BlackImagesError(PrivLMError):
    """The model has drawn what is no picture."""


@dataclass(frozen=True)
class Sampler:
    """Draws images with a stock pipeline of diffusers, whatever UNet and text encoder it has.

        Sampler(steps=20, guidance_scale=3.0, batch_size=8).generate(pipe, ["red, circle"], seeds=[7])

    scheduler: of CLASSES, None for the pipeline's own. negative_prompt: None as `encode_negative`. size: pixels of a
    side, None for what the UNet was made for. A SamplingConfig has the same fields (`Sampler.of`).
    """

    steps: int
    guidance_scale: float
    batch_size: int
    scheduler: str | None = None
    negative_prompt: str | None = None
    size: int | None = None

    @classmethod
    def of(cls, config: Any) -> Sampler:
        """Of the settings of a task."""
        names = ("steps", "guidance_scale", "batch_size", "scheduler", "negative_prompt", "size")
        return cls(**{name: getattr(config, name) for name in names})

    @torch.no_grad()
    def generate(
        self,
        pipe: Any,
        prompts: Sequence[str] | Conditioning,
        seeds: Sequence[int],
        negative: Conditioning | None = None,
    ) -> np.ndarray:
        """Images uint8 [N, H, W, 3], the i-th of prompt i and seed i.

        prompts: N texts, or what an encoder or an adapter of states has made of them.
        negative: what guidance leads away from, of one row or N; None: of `negative_prompt`.

        Raises UsageError for a size that the VAE cannot have, BlackImagesError where a number is not finite.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: each image has one of each")
        self._refuse_size(pipe)
        if self.scheduler is not None:
            pipe = _with_scheduler(pipe, self.scheduler)
        negative = negative if negative is not None else encode_negative(pipe, self.negative_prompt)
        if len(negative) == 1:
            negative = negative.expanded(len(seeds))
        found = []
        with at_rest(pipe, ("unet", "vae", *ENCODERS)):
            for start in range(0, len(seeds), self.batch_size):
                rows = slice(start, start + self.batch_size)
                part = prompts[rows]
                asked = part if isinstance(part, Conditioning) else encode(pipe, part)
                found.append(self._batch(pipe, asked, negative[rows], seeds[rows]))
        return np.concatenate(found) if found else np.zeros((0, *_image_shape(pipe, self.size), 3), np.uint8)

    def _batch(self, pipe: Any, asked: Conditioning, negative: Conditioning, seeds: Sequence[int]) -> np.ndarray:
        pooled = {} if asked.pooled is None else {"pooled_prompt_embeds": asked.pooled}
        if negative.pooled is not None:
            pooled["negative_pooled_prompt_embeds"] = negative.pooled
        height, width = _image_shape(pipe, self.size)
        latents = pipe(
            prompt_embeds=asked.states,
            negative_prompt_embeds=negative.states,
            **pooled,
            generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=height,
            width=width,
            output_type="latent",
        ).images
        return _seen(pipe, decode(pipe.vae, latents), seeds)

    def _refuse_size(self, pipe: Any) -> None:
        if self.size is not None and self.size % pipe.vae_scale_factor:
            raise UsageError(
                f"size={self.size}: the VAE of this model makes images whose sides are multiples of "
                f"{pipe.vae_scale_factor} pixels"
            )


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] of scaled latents [N, C, h, w], in float32."""
    raw = LatentScale.of(vae).unscale(latents)
    return (vae.decode(raw.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def _seen(pipe: Any, images: Tensor, seeds: Sequence[int]) -> np.ndarray:
    """As bytes; what the safety checker of the pipeline takes for indecent it makes black, which is said."""
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        first = seeds[int(finite.logical_not().nonzero()[0])]
        raise BlackImagesError(
            f"{int((~finite).sum())} of {len(images)} images are no numbers (the first of seed {first}): the weights "
            "have diverged, or model.dtype is too narrow for them (set it to float32)"
        )
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if getattr(pipe, "safety_checker", None) is not None:
        pixels, flags = pipe.run_safety_checker(pixels, pipe.unet.device, pipe.safety_checker.dtype)
        if blocked := [seed for seed, flag in zip(seeds, flags, strict=True) if flag]:
            logger.warning("the safety checker has made %d of %d images black", len(blocked), len(seeds))
    return np.rint(pixels * 255).astype(np.uint8)


def _with_scheduler(pipe: Any, name: str) -> Any:
    """The same parts, and this scheduler with the pipeline's noise."""
    import diffusers

    kind = getattr(diffusers, CLASSES[name])
    parts = pipe.components | {"scheduler": kind.from_config(pipe.scheduler.config)}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = parts["safety_checker"] is not None
    changed = type(pipe)(**parts)
    changed.set_progress_bar_config(disable=True)
    return changed


def _image_shape(pipe: Any, size: int | None) -> tuple[int, int]:
    side = size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    return side, side
