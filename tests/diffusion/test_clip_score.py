"""CLIP scores with a tiny random CLIPModel of the real kind, read from a folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from privlm.diffusion import clip as clip_module
from privlm.diffusion.clip import open_clip
from privlm.diffusion.clip_score import NO_MODEL, clip_score, clip_scores
from privlm.diffusion.extractors import open_extractor
from privlm.errors import UsageError

PROMPTS = ["a red circle", "two blue squares", "a triangle", "nothing at all"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)


def vocabulary():
    """Every letter, inside and at the end of a word, in the byte-level alphabet of CLIP."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = vocabulary()
    config = CLIPConfig(
        text_config=shape | {
            "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": words["<|endoftext|>"],
            "bos_token_id": words["<|startoftext|>"], "pad_token_id": words["<|endoftext|>"],
        },
        vision_config=shape | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_the_score_is_that_of_the_model_itself(folder):
    """Its forward gives 100 times the cosine where logit_scale is ln 100."""
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    square = torch.from_numpy(IMAGES[:, 4:36, 8:40]).permute(0, 3, 1, 2) / 255
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (clip_module.MEAN, clip_module.DEVIATION))
    with torch.inference_mode():
        found = model(pixel_values=(square - mean) / deviation, **tokenizer(PROMPTS, padding=True, return_tensors="pt"))
    cosines = (found.image_embeds * found.text_embeds).sum(dim=1)
    ours = clip_scores(IMAGES[:, 4:36, 8:40], PROMPTS, open_clip(folder))
    assert ours == pytest.approx(100 * cosines.clip(0).numpy(), abs=1e-4)
    assert (ours >= 0).all()
    assert (cosines.abs() > 1e-3).all()


def test_an_image_that_points_away_from_its_prompt_scores_nought(folder):
    clip = open_clip(folder)
    scores = clip_scores(IMAGES, PROMPTS, clip)
    clip.model.visual_projection.weight.neg_()
    assert ((clip_scores(IMAGES, PROMPTS, clip) == 0) == (scores > 0)).all()
    assert (scores > 0).any()


def test_a_score_names_its_model_and_has_an_interval(folder):
    found = clip_score(IMAGES, PROMPTS, folder)
    each = clip_scores(IMAGES, PROMPTS, open_clip(folder))
    assert found.column == "clip_score[tiny-clip]"
    assert found.estimate.value == pytest.approx(each.mean())
    assert 0 <= found.estimate.ci_low < found.estimate.value < found.estimate.ci_high <= 100
    assert found.estimate.n == 4
    assert clip_score(IMAGES, PROMPTS, folder, units=[0, 0, 0, 1]).estimate.n == 2
    assert str(found) == f"{each.mean():.2f}"


def test_without_a_model_there_is_no_figure_but_the_reason():
    found = clip_score(IMAGES, PROMPTS, None)
    assert (found.column, found.estimate, found.absent) == ("clip_score", None, NO_MODEL)
    assert str(found) == f"n/a ({NO_MODEL})"


def test_micro_batches_change_nothing(folder, monkeypatch):
    whole = clip_scores(IMAGES, PROMPTS, open_clip(folder))
    monkeypatch.setattr(clip_module, "MICRO_BATCH", 3)
    assert clip_scores(IMAGES, PROMPTS, open_clip(folder)) == pytest.approx(whole, abs=1e-3)


def test_long_prompts_are_cut_and_wide_images_lose_their_sides(folder):
    clip = open_clip(folder)
    assert clip.embed_texts(["a" * 500]).shape == (1, 12)
    wide = np.full((1, 32, 64, 3), 255, np.uint8)
    sides = wide.copy()
    sides[:, :, :14] = sides[:, :, -14:] = 0
    assert clip.embed_images(sides) == pytest.approx(clip.embed_images(wide), abs=1e-6)
    assert np.linalg.norm(clip.embed_images(wide)) == pytest.approx(1, abs=1e-6)


def test_the_channels_are_scaled_as_the_folder_says(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert not np.allclose(open_clip(other).embed_images(IMAGES), open_clip(folder).embed_images(IMAGES), atol=1e-3)


def test_clip_is_an_extractor_too(folder):
    extractor = open_extractor("clip", folder)
    assert extractor.name == "clip:tiny-clip"
    assert extractor(IMAGES) == pytest.approx(open_clip(folder).embed_images(IMAGES))


def test_what_is_no_clip_model_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="holds no CLIP model"):
        clip_score(IMAGES, PROMPTS, tmp_path / "absent")
    other = shutil.copytree(folder, tmp_path / "bert")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="kind 'bert', not clip"):
        clip_score(IMAGES, PROMPTS, other)
    (other / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json cannot be loaded"):
        clip_score(IMAGES, PROMPTS, other)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UsageError, match="damaged cannot be loaded"):
        clip_score(IMAGES, PROMPTS, damaged)


def test_each_image_needs_a_prompt_and_finite_pixels(folder):
    with pytest.raises(ValueError, match="4 images and 3 prompts"):
        clip_score(IMAGES, PROMPTS[:3], folder)
    with pytest.raises(ValueError, match="0 images and 0 prompts"):
        clip_score(IMAGES[:0], [], folder)
    with pytest.raises(ValueError, match="not finite"):
        clip_score(np.full((4, 32, 32, 3), np.nan), PROMPTS, folder)
