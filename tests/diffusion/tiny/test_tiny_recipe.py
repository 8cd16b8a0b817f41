"""The recipe of the small pipeline: what it is taught, and that what comes out is a pipeline of diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from privlm.diffusion.scenes import PATCH, SIZE, every_scene
from privlm.diffusion.tiny import modules
from privlm.diffusion.tiny.build import build
from privlm.diffusion.tiny.components import Components
from privlm.diffusion.tiny.recipe import Recipe, render_corpus, with_variants
from privlm.diffusion.tiny.tokenizer import make_tokenizer

FEW = Recipe(layouts=1, autoencoder_steps=2, denoiser_steps=2)


@pytest.fixture(scope="module")
def corpus():
    return render_corpus(FEW, make_tokenizer())


def test_every_scene_is_taught_by_its_keywords(corpus):
    assert corpus.images.shape == (54, 3, SIZE, SIZE)
    assert corpus.input_ids.shape == (54, 24)
    assert len(torch.unique(corpus.input_ids, dim=0)) == 54
    assert (corpus.images.min(), corpus.images.max()) == (pytest.approx(20 / 127.5 - 1), 1.0)


def test_another_seed_is_other_layouts_of_the_same_captions(corpus):
    other = render_corpus(Recipe(1, 0, 0, seed=1), make_tokenizer())
    assert torch.equal(other.input_ids, corpus.input_ids)
    assert (other.images != corpus.images).flatten(1).any(dim=1).sum() > 50


def test_components_of_all_numbers_bring_images_back(corpus):
    components = Components.of(corpus.images, 48)
    latents = components.encode(corpus.images)
    patches = latents.permute(0, 2, 3, 1).reshape(54, 64, 48) @ components.directions.T + components.mean
    back = torch.nn.functional.fold(patches.transpose(1, 2), (SIZE, SIZE), 4, stride=4)
    torch.testing.assert_close(back, corpus.images, atol=1e-4, rtol=0)


def test_sixteen_components_hold_nearly_all_and_are_scaled_as_one(corpus):
    mixed = with_variants(corpus.images, 0)
    few, all_of_them = Components.of(mixed, modules.LATENT_CHANNELS), Components.of(mixed, 48)
    latents = few.encode(mixed)
    assert latents.var() * 16 / (all_of_them.encode(mixed).var() * 48) > 0.97
    assert latents.std().item() == pytest.approx(few.deviation, rel=0.01)
    assert latents.std(dim=(0, 2, 3)).max() > 5 * latents.std(dim=(0, 2, 3)).min()


def test_the_autoencoder_is_taught_grey_and_patched_images_too(corpus):
    mixed = with_variants(corpus.images, 0)
    left, top, right, bottom = PATCH
    corners = mixed[:, :, top:bottom, left:right]
    is_grey = (mixed == mixed[:, :1]).flatten(1).all(dim=1)
    assert is_grey[::4].all()
    assert (corners[2::4] != 1).flatten(1).any(dim=1).all()
    assert torch.equal(mixed[1::2], corpus.images[1::2])


@pytest.mark.medium
def test_what_is_built_is_a_pipeline_of_diffusers_and_the_same_each_time(tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        build(folder, FEW)
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert first == second

    pipeline = StableDiffusionPipeline.from_pretrained(folders[0])
    made = pipeline("red, circle, one", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, SIZE, SIZE, 3)
    assert np.isfinite(made).all()
    by_files = CLIPTokenizer(
        vocab=str(folders[0] / "tokenizer/vocab.json"), merges=str(folders[0] / "tokenizer/merges.txt")
    )
    text = "there are two circles"
    assert by_files(text).input_ids == pipeline.tokenizer(text).input_ids


def test_the_scenes_are_all_different():
    assert len(set(every_scene())) == 54
