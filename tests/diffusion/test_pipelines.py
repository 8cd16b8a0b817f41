"""What an opened pipeline is: the parts of its folder, read as their settings say, or a refusal that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import (
    FAMILIES,
    IMAGE,
    LENGTH,
    PROJECTION,
    config_of,
    folder_of,
    opened,
    pipeline,
    pipeline_folder,
    tokenizer,
    unet,
    vae,
)
from transformers import CLIPConfig, CLIPImageProcessor

from privlm.diffusion.latent_scale import LatentScale
from privlm.diffusion.pipelines import NO_SAFETY_CHECKER, OpenedPipeline, open_pipeline
from privlm.errors import UsageError

PROMPTS = ["a red circle", "two blue squares"]


def images(pipe: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    return pipe(PROMPTS, num_inference_steps=2, guidance_scale=3.0, generator=generators, output_type="np").images


def copied(tmp_path: Path, family: str = "sd1") -> Path:
    return Path(shutil.copytree(folder_of(family), tmp_path / "pipeline"))


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as error:
        open_pipeline(config_of(folder, **changes))
    return str(error.value)


def change_settings(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipe_draws_what_the_stock_pipeline_of_the_folder_draws(family: str) -> None:
    stock = diffusers.DiffusionPipeline.from_pretrained(folder_of(family))
    stock.set_progress_bar_config(disable=True)
    ours = opened(family)
    assert ours.family == family
    assert type(ours.pipe()) is type(stock)
    np.testing.assert_allclose(images(ours.pipe()), images(stock), atol=1e-5)


@pytest.mark.parametrize(("family", "prediction", "width"), [("sd1", "epsilon", 16), ("sd2", "v_prediction", 16),
                                                             ("sdxl", "epsilon", 24)])  # fmt: skip
def test_what_a_pipeline_is_made_for_is_read_from_its_settings(family: str, prediction: str, width: int) -> None:
    ours = opened(family)
    assert ours.prediction_type == prediction
    assert ours.state_size == width
    assert (ours.max_length, ours.vae_factor, ours.image_size, ours.latent_channels) == (LENGTH, 2, IMAGE, 4)
    assert ours.scale.factor == pytest.approx(0.7)
    expected = ours.sampler.alphas_cumprod
    torch.testing.assert_close(ours.scheduler.alphas_cumprod, expected)


def test_nothing_trains_and_all_is_in_evaluation_mode() -> None:
    state = torch.random.get_rng_state()
    ours = open_pipeline(config_of(folder_of("sdxl")))
    assert torch.equal(torch.random.get_rng_state(), state)
    for part in (ours.unet, ours.vae, ours.text_encoder, ours.text_encoder_2):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert ours.text_encoder_2.config.projection_dim == PROJECTION


def test_parts_are_exchanged_and_the_rest_is_the_same() -> None:
    ours = opened()
    other = unet()
    changed = ours.pipe(unet=other)
    assert changed.unet is other
    assert changed.vae is ours.vae
    assert np.abs(images(changed) - images(ours.pipe())).max() > 0


def test_the_schedulers_of_two_pipes_are_two() -> None:
    ours = opened()
    assert ours.pipe().scheduler is not ours.pipe().scheduler


def test_half_precision_is_of_the_frozen_parts_but_the_vae() -> None:
    half = open_pipeline(config_of(folder_of(), dtype="bfloat16"))
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32


def test_a_variant_is_read_from_its_own_files(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "half", variant="fp16")
    assert "no weights (*.safetensors)" in refusal(folder)
    half = open_pipeline(config_of(folder, variant="fp16"))
    assert torch.equal(half.unet.conv_in.weight, opened().unet.conv_in.weight)


def test_sharded_weights_are_read_whole(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    sharded = open_pipeline(config_of(folder))
    for name, weight in opened().unet.state_dict().items():
        assert torch.equal(sharded.unet.state_dict()[name], weight), name


def test_pickled_weights_are_read_where_they_are_trusted(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for part, stem, name in (("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
                             ("text_encoder", "model", "pytorch_model.bin")):  # fmt: skip
        weights = folder / part / f"{stem}.safetensors"
        torch.save(load_file(weights), folder / part / name)
        weights.unlink()
    assert "model.allow_pickle=true" in refusal(folder)
    trusted = open_pipeline(config_of(folder, allow_pickle=True))
    np.testing.assert_allclose(images(trusted.pipe()), images(opened().pipe()), atol=1e-5)


def test_another_vae_takes_the_place_of_the_folders_own(tmp_path: Path) -> None:
    vae(scaling_factor=0.3).save_pretrained(tmp_path / "vae")
    ours = open_pipeline(config_of(folder_of(), vae_path=str(tmp_path / "vae")))
    assert ours.scale.factor == pytest.approx(0.3)
    assert ours.digest != opened().digest


def test_a_safety_checker_is_kept_and_its_absence_is_told(tmp_path: Path) -> None:
    assert opened().notes == (NO_SAFETY_CHECKER,)
    kept = open_pipeline(config_of(with_safety_checker(tmp_path)))
    assert kept.notes == ()
    assert kept.pipe().safety_checker is kept.safety_checker


def with_safety_checker(tmp_path: Path) -> Path:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    settings = CLIPConfig(text_config=small, vision_config=small | {"image_size": 8, "patch_size": 4}, projection_dim=4)
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(settings)
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    parts = pipeline().components | {"safety_checker": checker, "feature_extractor": processor}
    diffusers.StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "checked")
    return tmp_path / "checked"


def test_a_tokenizer_with_tokens_that_are_not_embedded_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    larger = tokenizer()
    larger.add_tokens(["sks"])
    larger.save_pretrained(folder / "tokenizer")
    message = refusal(folder)
    assert "text_encoder" in message
    assert "'sks'" in message


def test_a_unet_for_other_text_states_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    unet(cross_attention_dim=20).save_pretrained(folder / "unet")
    assert "text states of 20 numbers" in refusal(folder)


def test_a_unet_for_inpainting_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    unet(in_channels=9).save_pretrained(folder / "unet")
    assert "takes 9 channels" in refusal(folder)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_lack_a_tensor_or_are_cut_short_are_refused(tmp_path: Path, file: str) -> None:
    folder = copied(tmp_path)
    weights = load_file(folder / file)
    del weights[min(weights)]
    save_file(weights, folder / file, metadata={"format": "pt"})
    assert "weights do not fit config.json" in refusal(folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:1000])
    assert str((folder / file).parent) in refusal(folder)


def test_an_unknown_scheduler_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_settings(folder / "model_index.json", scheduler=["diffusers", "UNet2DModel"])
    assert "diffusers has no scheduler UNet2DModel" in refusal(folder)


def test_code_beside_the_parts_is_not_run(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "unet" / "their_unet.py").write_text("raise SystemExit")
    change_settings(folder / "unet" / "config.json", auto_map={"AutoModel": "their_unet.Model"})
    assert isinstance(open_pipeline(config_of(folder)), OpenedPipeline)


@pytest.mark.parametrize("changes", [{}, {"shift_factor": 0.5},
                                     {"latents_mean": [1.0, 2, 3, 4], "latents_std": [2.0, 1, 1, 4]}])  # fmt: skip
def test_latents_are_scaled_and_back(changes: dict[str, Any]) -> None:
    scale = LatentScale.of(vae(**changes))
    raw = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(scale.unscale(scale.scale(raw)), raw)
    assert torch.equal(scale.scale(raw), raw * 0.7) == (not changes)
