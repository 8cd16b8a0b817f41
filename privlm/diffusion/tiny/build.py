"""Trains the small pipeline and writes it as diffusers does, with what it can do and the digests of its files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import nn

from privlm import files
from privlm.diffusion.captions import keyword
from privlm.diffusion.grids import draw_grid, write_grid
from privlm.diffusion.judging import QUESTIONS, judge
from privlm.diffusion.sampling import Sampler
from privlm.diffusion.scenes import every_scene
from privlm.diffusion.tiny.components import Components
from privlm.diffusion.tiny.modules import LATENT_CHANNELS, make_scheduler
from privlm.diffusion.tiny.recipe import Recipe, render_corpus, train_autoencoder, train_denoiser, with_variants
from privlm.diffusion.tiny.tokenizer import make_tokenizer

NUM_LAYOUTS = 4  # images of each scene that are judged
FIRST_SEED = 10_000
SAMPLER = Sampler(steps=20, guidance_scale=2.5, batch_size=54)


def build(folder: Path, recipe: Recipe) -> Any:
    """A StableDiffusionPipeline from nothing."""
    tokenizer = make_tokenizer()
    corpus = render_corpus(recipe, tokenizer)
    images = with_variants(corpus.images, recipe.seed)
    components = Components.of(images, LATENT_CHANNELS)
    autoencoder = train_autoencoder(images, components, recipe)
    denoiser = train_denoiser(corpus, components, tokenizer, recipe)
    pipeline = assemble(tokenizer, denoiser.text_encoder, denoiser.unet, autoencoder)
    save(pipeline, folder)
    return pipeline


def assemble(tokenizer: Any, text_encoder: nn.Module | None, unet: nn.Module, vae: nn.Module) -> Any:
    """A StableDiffusionPipeline without a safety checker: there are shapes to be seen, and nothing else."""
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def measure(pipeline: Any, folder: Path) -> str:
    """Draws each scene NUM_LAYOUTS times and lets the rule judge; figures.json, grid.png, and a sentence of them."""
    scenes = [scene for _ in range(NUM_LAYOUTS) for scene in every_scene()]
    prompts = [keyword(scene) for scene in scenes]
    images = SAMPLER.generate(pipeline, prompts, seeds=range(FIRST_SEED, FIRST_SEED + len(scenes)))
    judged = judge(images, scenes)
    found = judged.estimates()
    figures = {name: asdict(estimate) for name, estimate in found.items()}
    files.write_json(folder / "figures.json", {"images": len(images), "sampler": asdict(SAMPLER), "found": figures})
    shown = len(every_scene())
    figure = draw_grid(images[:shown], prompts[:shown], columns=9, rights=list(judged.rule.all[:shown]))
    write_grid(folder / "grid.png", figure, prompts[:shown])
    rates = ", ".join(f"{name} {found[f'acc_{name}'].value:.3f}" for name in (*QUESTIONS, "all"))
    return f"a pipeline of diffusers; of {len(images)} images by keywords are right: {rates}"


def save(pipeline: Any, folder: Path) -> None:
    """The ordinary layout of diffusers; the tokenizer also as the two files that older transformers read."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    model = pipeline.tokenizer.backend_tokenizer
    merges = files.read_json(folder / "tokenizer" / "tokenizer.json")["model"]["merges"]
    vocab = dict(sorted(model.get_vocab().items(), key=lambda entry: entry[1]))
    files.write_text(folder / "tokenizer" / "vocab.json", json.dumps(vocab))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    files.write_text(folder / "tokenizer" / "merges.txt", "#version: 0.2\n" + "\n".join(lines) + "\n")
