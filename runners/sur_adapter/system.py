"""What a run trains and draws with: the adapter before a frozen UNet, or a UNet that learns the sentences itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from privlm.config import Config
from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import Denoising
from privlm.diffusion.image_files import fitted
from privlm.diffusion.image_rows import ImageRow
from privlm.diffusion.images import Images
from privlm.diffusion.latents import Autoencoder, LatentData, Latents, encode_images
from privlm.diffusion.lora import adapt, save_lora
from privlm.diffusion.pipelines import OpenedPipeline, open_pipeline
from privlm.diffusion.sampling import Sampler
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.models.evaluation_mode import evaluation_mode
from privlm.models.loaded import Loaded
from privlm.models.saving import save_trained
from privlm.training.objective import ExampleRandom, Objective

from .config import weights_of
from .data import SurData, Tokens
from .drawing import Artist
from .evaluation import Test
from .losses import SurModel, SurObjective
from .model import load_sur
from .vectors import Vectors


@dataclass(frozen=True)
class System:
    """opened: the base, whose parts the model of the adapter shares. vectors: None where no language model is read."""

    config: Config
    opened: OpenedPipeline
    loaded: Loaded
    objective: Objective
    vectors: Vectors | None

    @classmethod
    def of(cls, config: Config, opened: OpenedPipeline, vectors: Vectors | None) -> System:
        if config.task.denoising.gradient_checkpointing:
            opened.unet.enable_gradient_checkpointing()
        if config.task.method == "finetune":
            empty = Tokens.of(opened, [""]).ids[0]
            objective: Objective = Denoising(opened.scheduler, config.task.denoising, empty=empty)
            return cls(config, opened, load_finetuned(config, opened), objective, None)
        denoising = Denoising(opened.scheduler, config.task.denoising)
        objective = SurObjective(denoising, loss_settings(config), is_released=config.adapter.compat == "released")
        return cls(config, opened, load_sur(config, opened, vectors), objective, vectors)

    def data(self, stage: Stage, rows: Sequence[ImageRow], *, augment: bool) -> SurData:
        """What training reads of these images. augment: with the random crops and flips that data= asks for."""
        latents = LatentData(encoded(stage, self.opened, rows, augment=augment))
        sentences = [row.text for row in rows]
        is_sur = self.config.task.method != "finetune"
        keywords = Tokens.of(self.opened, [row.prompt for row in rows]) if is_sur else None
        return SurData(latents, sentences, Tokens.of(self.opened, sentences), keywords, self.vectors)

    def losses(self, stage: Stage, data: SurData) -> Callable[[nn.Module], Mapping[str, float]]:
        """model -> mean loss and parts on `data`, with the same noise and timesteps each time."""
        return lambda model: mean_losses(model, self.objective, data, stage)

    def artist(self) -> Artist:
        """Draws with the model as it is trained by now."""
        model, sampler = self.loaded.model, Sampler.of(self.config.task.sampling)
        if isinstance(model, SurModel):
            both = self.config.adapter.apply_to == "both"
            return Artist(self.opened.pipe(), sampler, model.adapter, both)
        assert isinstance(model, Denoiser)
        return Artist(self.opened.pipe(unet=model.unet), sampler)


def encoded(stage: Stage, opened: OpenedPipeline, rows: Sequence[ImageRow], *, augment: bool) -> Latents:
    """Latents of images, encoded once by the main process and kept in the stage's folder until the run is done."""
    job, folder = stage.job, stage.folder / "latents"
    stage.discard(folder)
    autoencoder = autoencoder_of(opened)

    def encode() -> Latents:
        with job.progress("latents", len(rows), interruptible=True) as tick:
            return encode_images(rows, stage.config.data, autoencoder, folder=folder, augment=augment, progress=tick)

    first = encode() if job.is_main else None
    job.wait_for_everyone()
    return encode() if first is None else first


def autoencoder_of(opened: OpenedPipeline) -> Autoencoder:
    """Of a pipeline. Raises UsageError for latents whose channels are scaled apart, which SD 1 and 2 do not have."""
    scale = opened.scale
    if not torch.equal(scale.std, torch.ones_like(scale.std)) or scale.mean.unique().numel() > 1:
        raise UsageError("model: the VAE scales the channels of its latents apart; choose the VAE of SD 1 or SD 2")
    shift = float(scale.mean.flatten()[0])
    return Autoencoder(opened.vae, scale.factor, shift, opened.vae_factor, opened.digest)


def base_artist(config: Config, opened: OpenedPipeline) -> Artist:
    """Draws with the pipeline as it came."""
    return Artist(opened.pipe(), Sampler.of(config.task.sampling))


def load_finetuned(config: Config, opened: OpenedPipeline) -> Loaded:
    """A UNet of its own, with low-rank pairs or whole; of pairs the file that diffusers reads is saved too."""

    def build() -> nn.Module:
        own = open_pipeline(config.model)
        if config.task.denoising.gradient_checkpointing:
            own.unet.enable_gradient_checkpointing()
        return Denoiser(adapt(own.unet, config.adapter, config.seed), own.text_encoder)

    settings: Any = OmegaConf.to_container(OmegaConf.create({"adapter": config.adapter}))
    given = {name: value for name, value in settings["adapter"].items() if value is not None}
    made_of = ["finetune", opened.digest, given, config.seed]
    loaded = Loaded.of(build, made_of=made_of, tokenizer=opened.tokenizer)
    if config.adapter.name != "lora":
        return loaded

    def save(model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Denoiser)
        save_trained(model, folder, loaded.digest)
        save_lora(folder, unet=model.unet)

    return replace(loaded, save=save)


def loss_settings(config: Config) -> Any:
    """task.losses with the weights that the method leaves."""
    plain: Any = OmegaConf.to_container(config.task.losses)
    return OmegaConf.create(plain | weights_of(config.task)._asdict())


@torch.no_grad()
def mean_losses(model: nn.Module, objective: Objective, data: SurData, stage: Stage) -> dict[str, float]:
    """Of all examples, in evaluation mode; their draws are those of step 0 of the stage."""
    device, size = stage.job.accelerator.device, stage.config.trainer.micro_batch_size
    sums: dict[str, float] = {}
    with evaluation_mode(model):
        for start in range(0, len(data), size):
            places = np.arange(start, min(start + size, len(data)))
            batch = {name: tensor.to(device) for name, tensor in data.batch(places).items()}
            with stage.job.accelerator.autocast():
                found = objective.losses(model, batch, ExampleRandom(stage.seed(), 0, places))
            for name, values in {"loss": found.loss, **found.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(values.sum())
    return {name: total / len(data) for name, total in sums.items()}


def test_of(config: Config, images: Images) -> Test:
    """The first rows of the test. Raises UsageError where there are none."""
    rows = images.test[: config.task.judging.num_images]
    if not rows:
        raise UsageError("data.num_test: no image is left to test on; give it a number, or name a test split")
    real = np.stack([fitted(row.picture(), config.data.resolution).pixels for row in rows])
    return Test(rows, real, config.seed)
