"""Images of prompts: one seed each, whatever the batch, the family and the part that is exchanged."""

from __future__ import annotations

import logging

import diffusers
import numpy as np
import pytest
import torch
from test_pipelines import with_safety_checker
from tiny_pipelines import FAMILIES, IMAGE, PROJECTION, config_of, opened

from privlm.diffusion.conditioning import Conditioning, encode, encode_negative, time_ids, tokenize
from privlm.diffusion.pipelines import open_pipeline
from privlm.diffusion.sampling import CLASSES, BlackImagesError, Sampler, decode
from privlm.diffusion.schema import SCHEDULERS, SamplingConfig
from privlm.errors import UsageError

PROMPTS = ["a red circle", "two blue squares", "three small triangles", "", "x"]
SEEDS = [3, 4, 5, 6, 3]
SAMPLER = Sampler(steps=2, guidance_scale=3.0, batch_size=7)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_do_not_depend_on_the_batch(family: str) -> None:
    pipe = opened(family).pipe()
    whole = SAMPLER.generate(pipe, PROMPTS, SEEDS)
    assert whole.shape == (5, IMAGE, IMAGE, 3)
    assert whole.dtype == np.uint8
    for size in (1, 2):
        single = Sampler(steps=2, guidance_scale=3.0, batch_size=size).generate(pipe, PROMPTS, SEEDS)
        assert np.abs(single.astype(int) - whole).max() <= 1  # a rounding of 1e-3 may cross a byte's border


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_stock_pipeline(family: str) -> None:
    pipe = opened(family).pipe()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    stock = pipe(PROMPTS, num_inference_steps=2, guidance_scale=3.0, generator=generators, output_type="np").images
    ours = SAMPLER.generate(pipe, PROMPTS, SEEDS)
    assert np.abs(np.rint(stock * 255) - ours).max() <= 1


def test_seed_and_prompt_both_matter() -> None:
    pipe = opened().pipe()
    same, other_seed, other_prompt = SAMPLER.generate(pipe, ["a", "a", "bcd"], [3, 4, 3])
    assert np.abs(same.astype(int) - other_seed).max() > 0
    assert np.abs(same.astype(int) - other_prompt).max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_states_in_place_of_prompts_give_the_same_images(family: str) -> None:
    pipe = opened(family).pipe()
    states = encode(pipe, PROMPTS)
    assert (states.pooled is not None) == (family == "sdxl")
    ours = Sampler(steps=2, guidance_scale=3.0, batch_size=2).generate(pipe, states, SEEDS, encode_negative(pipe))
    assert np.abs(ours.astype(int) - SAMPLER.generate(pipe, PROMPTS, SEEDS)).max() <= 1


def test_a_negative_prompt_and_the_guidance_change_images() -> None:
    pipe = opened().pipe()
    plain = SAMPLER.generate(pipe, PROMPTS, SEEDS)
    for changed in ({"negative_prompt": "a blue square"}, {"guidance_scale": 1.0}):
        other = Sampler(**{"steps": 2, "guidance_scale": 3.0, "batch_size": 7} | changed)
        assert np.abs(other.generate(pipe, PROMPTS, SEEDS).astype(int) - plain).max() > 0


def test_schedulers_are_those_of_the_schema_and_leave_the_pipe_as_it_is() -> None:
    assert set(SCHEDULERS) == set(CLASSES)
    pipe = opened().pipe()
    plain = SAMPLER.generate(pipe, PROMPTS, SEEDS)
    for name in SCHEDULERS:
        other = Sampler(steps=2, guidance_scale=3.0, batch_size=7, scheduler=name).generate(pipe, PROMPTS, SEEDS)
        assert bool(np.abs(other.astype(int) - plain).max() > 0) == (name != "ddim")  # the folder's own
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)


def test_a_size_that_the_vae_cannot_have_is_refused_and_another_one_is_made() -> None:
    pipe = opened().pipe()
    assert Sampler(2, 1.0, 2, size=24).generate(pipe, ["a"], [1]).shape == (1, 24, 24, 3)
    with pytest.raises(UsageError, match="size=17"):
        Sampler(2, 1.0, 2, size=17).generate(pipe, ["a"], [1])


def test_no_prompts_are_no_images() -> None:
    assert SAMPLER.generate(opened().pipe(), [], []).shape == (0, IMAGE, IMAGE, 3)
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        SAMPLER.generate(opened().pipe(), ["a"], [1, 2])


def test_modes_of_a_model_that_trains_are_given_back() -> None:
    ours = opened()
    ours.unet.train()
    SAMPLER.generate(ours.pipe(), ["a"], [1])
    assert ours.unet.training
    assert not ours.vae.training


def test_diverged_weights_are_said_not_drawn_black() -> None:
    ours = opened()
    with torch.no_grad():
        ours.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(BlackImagesError, match="2 of 2 images are no numbers"):
        SAMPLER.generate(ours.pipe(), ["a", "b"], [1, 2])


def test_half_precision_draws_through_a_vae_of_full_precision() -> None:
    config = config_of(opened().directory, dtype="bfloat16")
    drawn = SAMPLER.generate(open_pipeline(config).pipe(), PROMPTS, SEEDS)
    assert np.abs(drawn.astype(int) - SAMPLER.generate(opened().pipe(), PROMPTS, SEEDS)).mean() < 8


def test_what_the_safety_checker_takes_out_is_said(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    ours = open_pipeline(config_of(with_safety_checker(tmp_path)))
    ours.safety_checker.concept_embeds_weights.fill_(-1.0)  # every image is one that it would take out
    caplog.set_level(logging.WARNING, "privlm")
    drawn = SAMPLER.generate(ours.pipe(), ["a", "b"], [1, 2])
    assert not drawn.any()
    assert "2 of 2 images black" in caplog.text


def test_decoding_reads_the_scale_of_the_vae() -> None:
    vae, latents = opened().vae, torch.randn(2, 4, 8, 8)
    expected = (vae.decode(latents / 0.7).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decode(vae, latents), expected)


def test_tokens_are_padded_and_cut_to_the_length_of_the_pipeline() -> None:
    ours = opened("sdxl")
    ids = tokenize(ours, ["a", "a b c " * 100])
    assert ids.shape == (2, ours.max_length)
    assert int(ids.max()) == ours.tokenizer.eos_token_id
    assert torch.equal(tokenize(ours, ["a"], second=True), tokenize(ours, ["a"]))


def test_states_are_those_of_the_text_encoder_on_these_tokens() -> None:
    ours = opened()
    expected = ours.text_encoder(tokenize(ours, PROMPTS))[0]
    torch.testing.assert_close(encode(ours.pipe(), PROMPTS).states, expected)


def test_sdxl_is_told_pooled_states_and_sizes() -> None:
    ours = opened("sdxl")
    found = encode(ours.pipe(), PROMPTS)
    assert found.states.shape == (5, ours.max_length, ours.state_size)
    assert found.pooled is not None
    assert found.pooled.shape == (5, PROJECTION)
    sizes = time_ids((32, 16), (2, 0), (16, 16))
    assert sizes.tolist() == [32, 16, 2, 0, 16, 16]
    added = {"text_embeds": found.pooled, "time_ids": sizes.expand(5, -1)}
    latents = torch.randn(5, 4, 8, 8)
    seen = ours.unet(latents, torch.full((5,), 10), found.states, added_cond_kwargs=added).sample
    added["time_ids"] = time_ids((16, 16), (0, 0), (16, 16)).expand(5, -1)
    assert (
        ours.unet(latents, torch.full((5,), 10), found.states, added_cond_kwargs=added).sample - seen
    ).abs().max() > 0


def test_sdxl_leaves_the_text_out_as_it_was_trained() -> None:
    pipe = opened("sdxl").pipe()
    assert pipe.config.force_zeros_for_empty_prompt
    assert not encode_negative(pipe).states.any()
    assert encode_negative(pipe, "").states.any()


def test_conditioning_is_cut_and_repeated() -> None:
    one = Conditioning(torch.randn(3, 2, 4), torch.randn(3, 5))[1:2]
    assert len(one.expanded(4)) == 4
    assert torch.equal(one.expanded(4).states[3], one.states[0])


def test_settings_of_a_task_make_the_same_sampler() -> None:
    config = SamplingConfig(2, 3.0, 7, None, None, None)
    assert Sampler.of(config) == SAMPLER
