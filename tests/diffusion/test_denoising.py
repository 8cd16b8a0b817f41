"""The denoising objective beside its formulas, and what an example's loss depends on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import PREDICTIONS, Denoising
from privlm.training.objective import ExampleRandom

SHAPE = (3, 4, 4)


class Answer(nn.Module):
    """A UNet that answers with a part of its input, and remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.heard = {}

    def forward(self, noisy, timesteps, encoder_hidden_states, added_cond_kwargs):
        self.heard = {
            "noisy": noisy,
            "timesteps": timesteps,
            "states": encoder_hidden_states,
            "added": added_cond_kwargs,
        }
        return SimpleNamespace(sample=self.scale * noisy)


def settings(**changes):
    values = {"snr_gamma": None, "noise_offset": 0.0, "caption_dropout": 0.0} | changes
    return SimpleNamespace(**values)


def scheduler(prediction="epsilon", **changes):
    return DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear", **changes)


def batch(size=4, **more):
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(size, *SHAPE, generator=random)
    return {"latents": latents, "text_states": torch.randn(size, 5, 8, generator=random)} | more


def rng(size=4, step=3):
    return ExampleRandom(0, step, np.arange(size))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_mean_square_of_what_diffusers_schedulers_say_is_to_be_predicted(prediction):
    schedule, unet, rows = scheduler(prediction), Answer(), batch()
    loss = Denoising(schedule, settings()).losses(Denoiser(unet), rows, rng()).loss

    again = rng()
    timesteps, noise = again.integers(0, 1000, stream="timestep"), again.normal(SHAPE)
    noisy = schedule.add_noise(rows["latents"], noise, timesteps)
    wanted = {
        "epsilon": noise,
        "v_prediction": schedule.get_velocity(rows["latents"], noise, timesteps),
        "sample": rows["latents"],
    }[prediction]
    torch.testing.assert_close(unet.heard["noisy"], noisy)
    torch.testing.assert_close(loss, (0.5 * noisy - wanted).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("prediction", "divided_by"),
    [("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1), ("sample", torch.ones_like)],
)
def test_min_snr_weights_are_of_the_prediction(prediction, divided_by):
    schedule = scheduler(prediction)
    timesteps = torch.arange(0, 1000, 37)
    snr = compute_snr(schedule, timesteps)
    weights = Denoising(schedule, settings(snr_gamma=5.0)).weights(timesteps)
    torch.testing.assert_close(weights, snr.clamp(max=5.0) / divided_by(snr), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_finite_where_no_signal_is_left(prediction):
    schedule = scheduler(prediction, rescale_betas_zero_snr=True)
    schedule.alphas_cumprod[-1] = 0.0
    weights = Denoising(schedule, settings(snr_gamma=5.0)).weights(torch.tensor([0, 998, 999]))
    assert torch.isfinite(weights).all()
    assert weights[-1] == (1.0 if prediction == "epsilon" else 0.0)


def test_timestep_noise_and_offset_come_of_streams_of_their_own():
    plain, shifted = Denoising(scheduler(), settings()), Denoising(scheduler(), settings(noise_offset=0.1))
    rows = batch(64)
    timesteps, noise = plain.draw(rows["latents"], rng(64))
    timesteps_again, offset_noise = shifted.draw(rows["latents"], rng(64))
    assert torch.equal(timesteps, timesteps_again)
    offset = (offset_noise - noise) / 0.1
    assert torch.allclose(offset, offset[:, :, :1, :1].expand_as(offset), atol=1e-5), "one number for each channel"
    together = np.corrcoef([timesteps.numpy(), noise[:, 0, 0, 0].numpy(), offset[:, 0, 0, 0].numpy()])
    assert np.abs(together - np.eye(3)).max() < 0.4


def test_a_share_of_the_captions_is_left_out_whatever_the_batch():
    objective = Denoising(scheduler(), settings(caption_dropout=0.3), empty=torch.zeros(5, 8))
    rows, unet = batch(200), Answer()
    objective.losses(Denoiser(unet), rows, rng(200))
    empty = (unet.heard["states"] == 0).all(dim=(1, 2))
    assert 0.2 < empty.float().mean() < 0.4
    objective.losses(
        Denoiser(unet), {name: values[7:9] for name, values in rows.items()}, ExampleRandom(0, 3, np.array([7, 8]))
    )
    assert torch.equal((unet.heard["states"] == 0).all(dim=(1, 2)), empty[7:9])


def test_a_row_depends_on_its_own_example_alone():
    objective, model, rows = Denoising(scheduler(), settings()), Denoiser(Answer()), batch()
    together = objective.losses(model, rows, rng()).loss
    alone = objective.losses(
        model, {name: values[2:3] for name, values in rows.items()}, ExampleRandom(0, 3, np.array([2]))
    ).loss
    torch.testing.assert_close(together[2:3], alone)


def test_the_unet_of_sdxl_is_told_the_pooled_text_and_the_sizes():
    unet = Answer()
    rows = batch(pooled=torch.ones(4, 6), time_ids=torch.zeros(4, 6))
    Denoising(scheduler(), settings()).losses(Denoiser(unet), rows, rng())
    assert sorted(unet.heard["added"]) == ["text_embeds", "time_ids"]


def test_dropped_captions_need_an_empty_one():
    with pytest.raises(AssertionError, match="empty caption"):
        Denoising(scheduler(), settings(caption_dropout=0.1))
