"""How the small pipeline is trained: an autoencoder of rendered scenes, then text encoder and UNet on its latents.

The base learns captions by keywords alone: what a method gains on sentences is then there to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.diffusion import captions
from privlm.diffusion.averaging import Averaged
from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import Denoising
from privlm.diffusion.denoising_schema import DenoisingConfig
from privlm.diffusion.latent_data import LatentData, Latents
from privlm.diffusion.scenes import PATCH, every_scene, render
from privlm.diffusion.tiny import modules
from privlm.diffusion.tiny.autoencoding import Autoencoding, Images
from privlm.diffusion.tiny.components import Components
from privlm.privacy import keyed_random
from privlm.progress import progress
from privlm.schema import defaults
from privlm.training.objective import Objective
from privlm.training.schema import TrainerConfig
from privlm.training.trainer import Monitor, Trainer

DECAY = 0.999
DENOISING = DenoisingConfig(
    snr_gamma=None, noise_offset=0.0, caption_dropout=0.1, ema_decay=DECAY, gradient_checkpointing=False
)


@dataclass(frozen=True)
class Recipe:
    """layouts: of each of the 54 scenes."""

    layouts: int
    autoencoder_steps: int
    denoiser_steps: int
    seed: int = 0


RECIPES = {"smoke": Recipe(40, 200, 400), "small": Recipe(450, 3000, 8000)}


@dataclass(frozen=True)
class Corpus:
    """images: float32 [N, 3, 32, 32] in [-1, 1]. input_ids: int64 [N, L], of their captions by keywords."""

    images: Tensor
    input_ids: Tensor
    empty: Tensor


def render_corpus(recipe: Recipe, tokenizer: Any) -> Corpus:
    """Every scene in as many layouts."""
    scenes = [scene for _ in range(recipe.layouts) for scene in every_scene()]
    first = keyed_random.key_bits("layouts of the base", recipe.seed) >> 65
    images = np.stack([render(scene, first + number).image for number, scene in enumerate(scenes)])
    texts = [captions.keyword(scene) for scene in scenes]
    ids = tokenizer([*texts, ""], padding="max_length", return_tensors="pt").input_ids
    return Corpus(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, ids[:-1], ids[-1])


def with_variants(images: Tensor, seed: int) -> Tensor:
    """A quarter of the images in grey, another with a patch in the free corner: these have latents too."""
    images = images.clone()
    random = keyed_random.generator("variants for the autoencoder", seed)
    images[::4] = images[::4].mean(dim=1, keepdim=True)
    left, top, right, bottom = PATCH
    for image in images[2::4]:
        image[:, top:bottom, left:right] = _patch(bottom - top, right - left, random)
    return images


def _patch(height: int, width: int, random: np.random.Generator) -> Tensor:
    """A plain colour, or a checkerboard of black and white."""
    if random.random() < 0.5:
        return torch.from_numpy(random.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    cell = int(random.choice([1, 2, 4]))
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    return ((rows[:, None] + columns) % 2 * 2.0 - 1.0).expand(3, -1, -1)


def train_autoencoder(images: Tensor, components: Components, recipe: Recipe) -> nn.Module:
    """An AutoencoderKL whose latents are the components, scaled to a deviation of 1."""
    torch.manual_seed(recipe.seed)
    model = modules.make_autoencoder(1 / components.deviation)
    _train("autoencoder", model, Autoencoding(components), Images(images), recipe.autoencoder_steps, recipe.seed, 2e-3)
    return model.eval()


def train_denoiser(corpus: Corpus, components: Components, tokenizer: Any, recipe: Recipe) -> Denoiser:
    """Text encoder and UNet, with the averages of their weights."""
    torch.manual_seed(recipe.seed)
    model = Denoiser(modules.make_unet(), modules.make_text_encoder(tokenizer))
    latents = components.encode(corpus.images) / components.deviation
    denoising = Denoising(modules.make_scheduler(), DENOISING, empty=corpus.empty)
    objective = Averaged(denoising, decay=DECAY)
    data = captioned(latents, corpus.input_ids)
    _train("denoiser", model, objective, data, recipe.denoiser_steps, recipe.seed, 1.5e-3)
    objective.copy_to(model)
    return model.eval()


def captioned(latents: Tensor, input_ids: Tensor) -> LatentData:
    """latents [N, C, h, w] and the tokens of their captions [N, L]."""
    return LatentData(Latents(latents[:, None], time_ids=torch.zeros(len(latents), 1, 6)), input_ids=input_ids)


def _train(
    name: str,
    model: nn.Module,
    objective: Objective,
    data: Any,
    steps: int,
    seed: int,
    learning_rate: float,
) -> None:
    settings = defaults(
        TrainerConfig,
        "trainer",
        "single",
        learning_rate=learning_rate,
        schedule="cosine",
        final_learning_rate=0.03,
        warmup_steps=50,
        weight_decay=1e-2,
        max_grad_norm=1.0,
        checkpoint_every=0,
    )
    with progress(name, steps) as tick:
        Trainer(model, objective, data, settings, seed=seed, monitor=Monitor(tick=tick)).run(steps)
