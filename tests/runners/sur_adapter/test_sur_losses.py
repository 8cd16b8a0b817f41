"""The losses by hand, their parts, and what they teach: against small models of the released code's faults."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from privacy.naive import assert_agrees
from privlm.runners.sur_adapter.adapter import SurAdapter
from privlm.runners.sur_adapter.losses import (
    DISTANCES,
    FrozenProjection,
    SurModel,
    SurObjective,
    kl_feature,
    make_projection,
    over_positions,
)  # fmt: skip
from torch import nn

from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import Denoising
from privlm.training.objective import ExampleRandom

B, L, D, H = 4, 5, 8, 6
ONE_ROW, MANY_ROWS = 1, L


class Unet(nn.Module):
    """Of a UNet's form, and its states count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.told = nn.Linear(D, 2)

    def forward(self, noisy, timesteps, encoder_hidden_states, added_cond_kwargs=None):
        told = self.told(encoder_hidden_states.square().mean(1))
        return SimpleNamespace(sample=self.conv(noisy) * told[:, :, None, None] + told[:, :, None, None])


def settings(**changes) -> SimpleNamespace:
    found = {
        "w_align": 0.3, "w_llm": 0.2, "w_keep": 0.1, "align": "kl_feature", "llm": "kl_feature",
        "kl_reduction": "batch", "mask_padding": True,
    }  # fmt: skip
    return SimpleNamespace(**found | changes)


def objective(*, is_released: bool = False, prediction: str = "epsilon", **changes) -> SurObjective:
    plain = SimpleNamespace(snr_gamma=None, noise_offset=0.0, caption_dropout=0.0)
    scheduler = SimpleNamespace(
        config=SimpleNamespace(prediction_type=prediction), alphas_cumprod=torch.linspace(0.99, 0.01, 10)
    )
    return SurObjective(Denoising(scheduler, plain), settings(**changes), is_released=is_released)


def model(*, proj: str = "train", is_released: bool = False, dropout: float = 0.0) -> SurModel:
    torch.manual_seed(0)
    adapter = SurAdapter(D, heads=2, feedforward=16, dropout=dropout, eta=0.5, is_released=is_released)
    return SurModel(Denoiser(Unet()), adapter, make_projection(proj, H, D)).train()


def batch(rows: int = ONE_ROW, num: int = B) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    lengths = torch.tensor([5, 3, 4, 2])[:num]
    mask = torch.arange(L) < lengths[:, None]
    return {
        "latents": torch.randn(num, 2, 4, 4),
        "text_states": torch.randn(num, L, D),
        "text_mask": mask,
        "keyword_states": torch.randn(num, L, D),
        "keyword_mask": mask.flip(0),
        "vectors": torch.randn(num, rows, H),
        "vector_mask": torch.ones(num, 1, dtype=torch.bool) if rows == ONE_ROW else mask.roll(1, 0),
    }


def rng(num: int = B) -> ExampleRandom:
    return ExampleRandom(0, 1, np.arange(num))


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


# --- the distances --------------------------------------------------------------------------------------------------


def test_the_divergence_has_the_trained_side_on_its_left():
    """By hand: softmax of (0, ln 2, 0) is (1, 2, 1) / 4, of (0, 0, ln 6) it is (1, 1, 6) / 8."""
    ln = np.log
    trained = torch.tensor([[[0, ln(2), 0], [0, 0, ln(6)]]], dtype=torch.float64)
    target = torch.tensor([[[0, 0, ln(6)], [0, 0, ln(6)]]], dtype=torch.float64)
    first = 0.25 * ln(2) + 0.5 * ln(4) + 0.25 * ln(1 / 3)
    torch.testing.assert_close(kl_feature(trained, target), torch.tensor([[first, 0.0]], dtype=torch.float32))
    turned = 0.125 * ln(0.5) + 0.125 * ln(0.25) + 0.75 * ln(3)
    torch.testing.assert_close(kl_feature(target, trained)[0, 0], torch.tensor(turned, dtype=torch.float32))
    assert abs(first - turned) > 0.02


def test_the_divergence_is_that_of_torch_with_batchmean():
    torch.manual_seed(0)
    trained, target = torch.randn(3, L, D), torch.randn(3, L, D)
    theirs = nn.functional.kl_div(target.log_softmax(-1), trained.softmax(-1), reduction="batchmean")
    ours = over_positions(kl_feature(trained, target), torch.ones(3, L, dtype=torch.bool), summed=True).mean()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", DISTANCES)
def test_every_distance_is_nothing_of_equals_and_more_of_others(kind):
    torch.manual_seed(0)
    one, other = torch.randn(2, 1, L, D)
    torch.testing.assert_close(DISTANCES[kind](one, one), torch.zeros(1, L), atol=1e-6, rtol=0)
    assert (DISTANCES[kind](one, other) > 0.01).all()


def test_longer_prompts_weigh_more_by_the_reduction_of_the_paper_alone():
    """D12."""
    distance = torch.ones(2, 6)
    mask = torch.arange(6) < torch.tensor([[2], [6]])
    assert over_positions(distance, mask, summed=True).tolist() == [2, 6]
    assert over_positions(distance, mask, summed=False).tolist() == [1, 1]


@pytest.mark.parametrize(("reduction", "is_equal"), [("batch", False), ("token", True)])
def test_the_reduction_is_the_setting(reduction, is_equal):
    """Of a prompt whose positions are all alike, and one half of them."""
    data = batch(num=2)
    for name in ("text_states", "keyword_states"):
        data[name] = data[name][:1, :1].expand(2, L, D).clone()
    data["text_mask"] = data["keyword_mask"] = torch.arange(L) < torch.tensor([[4], [2]])
    with torch.no_grad():
        parts = objective(kl_reduction=reduction).losses(model().eval(), data, rng(2)).parts
    assert torch.allclose(parts["loss_align"][0], parts["loss_align"][1]) == is_equal


# --- the objective --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts():
    found = objective().losses(model(), batch(), rng())
    weights = {"loss_diff": 1.0, "loss_align": 0.3, "loss_llm": 0.2, "loss_keep": 0.1}
    assert set(found.parts) == set(weights)
    torch.testing.assert_close(found.loss, sum(weights[name] * part for name, part in found.parts.items()))


@pytest.mark.parametrize(
    ("off", "unread", "left"),
    [
        (("w_align", "w_keep"), ("keyword_states", "keyword_mask"), {"loss_diff", "loss_llm"}),
        (("w_llm",), ("vectors", "vector_mask"), {"loss_diff", "loss_align", "loss_keep"}),
    ],
)
def test_a_part_without_weight_is_not_computed(off, unread, left):
    data = {name: tensor for name, tensor in batch().items() if name not in unread}
    assert set(objective(**dict.fromkeys(off, 0.0)).losses(model(), data, rng()).parts) == left


def test_keywords_are_kept_by_what_the_adapter_changes_of_them():
    """Nothing, where it begins as the identity; and then what the adapter makes of keywords, not of the sentence."""
    kept, data = objective(align="mse"), batch()
    begun, changed = model().eval(), after_a_step().eval()
    begun.adapter.mix = changed.adapter.mix = "residual"
    with torch.no_grad():
        assert not kept.losses(begun, data, rng()).parts["loss_keep"].any()
        found = kept.losses(changed, data, rng()).parts["loss_keep"]
        change_BLd = changed.adapter(data["keyword_states"]).states - data["keyword_states"]
    expected = over_positions(change_BLd.square().mean(-1), data["keyword_mask"], summed=False)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert (found > 0).all()


@pytest.mark.parametrize("rows", [ONE_ROW, MANY_ROWS])
@pytest.mark.parametrize("part", ["loss_align", "loss_llm"])
def test_what_stands_at_padding_counts_only_where_it_is_asked_to(rows, part):
    """text_states are the same: what the adapter reads is not masked."""
    data = batch(rows)
    other = dict(data)
    if part == "loss_align":
        padding = ~(data["text_mask"] | data["keyword_mask"])
        other["keyword_states"] = data["keyword_states"] * torch.where(padding, -2, 1)[:, :, None]
    elif rows == MANY_ROWS:
        padding = data["vector_mask"] & ~data["text_mask"]
        other["vectors"] = data["vectors"] * torch.where(padding, -2, 1)[:, :, None]
    else:  # a row for all positions: what is compared with padding is the adapter's side
        other["text_mask"] = torch.ones_like(data["text_mask"])
    for is_masked in (True, False):
        with torch.no_grad():
            one, two = (
                objective(mask_padding=is_masked).losses(model().eval(), rows_, rng()).parts[part]
                for rows_ in (data, other)
            )
        changes = rows == ONE_ROW and part == "loss_llm"
        assert torch.allclose(one, two) == (is_masked != changes)


def test_rows_that_a_language_model_did_not_give_never_count():
    data = batch(MANY_ROWS)
    other = data | {"vectors": torch.where(data["vector_mask"][:, :, None], data["vectors"], 7.0)}
    with torch.no_grad():
        one, two = (
            objective(mask_padding=False).losses(model().eval(), rows, rng()).parts["loss_llm"]
            for rows in (data, other)
        )
    torch.testing.assert_close(one, two)


def test_an_example_hears_nothing_of_its_neighbours():
    data = batch()
    together = objective().losses(model().eval(), data, rng()).loss
    for i in range(B):
        row = {name: tensor[i : i + 1] for name, tensor in data.items()}
        alone = objective().losses(model().eval(), row, ExampleRandom(0, 1, np.array([i]))).loss
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize(("prediction", "is_wrong"), [("epsilon", False), ("v_prediction", True)])
def test_timesteps_weigh_as_the_prediction_asks(prediction, is_wrong):
    """D11: the released code divides by the SNR, which is right for noise alone."""
    weighted, plain = (objective(prediction=prediction) for _ in range(2))
    weighted.denoising.settings = SimpleNamespace(snr_gamma=2.0, noise_offset=0.0, caption_dropout=0.0)
    with torch.no_grad():
        found, unweighted = (one.losses(model().eval(), batch(), rng()).parts["loss_diff"] for one in (weighted, plain))
    signal = plain.denoising.signal[rng().integers(0, 10, stream="timestep")]
    snr = signal / (1 - signal)
    by_noise = snr.clamp(max=2.0) / snr
    right = by_noise if prediction == "epsilon" else snr.clamp(max=2.0) / (snr + 1)
    torch.testing.assert_close(found / unweighted, right)
    assert torch.allclose(right, by_noise) != is_wrong


def after_a_step(*, is_released: bool = False) -> SurModel:
    """While the last weight is zero nothing before it learns by denoising."""
    trained = model(is_released=is_released)
    nn.init.normal_(trained.adapter.out.weight, std=0.1)
    return trained


def test_denoising_alone_teaches_every_parameter_of_the_adapter():
    """D1 and D3. A shift of all keys changes no attention: their bias has no gradient by construction."""
    trained = after_a_step()
    found = gradients(trained.adapter, objective().losses(trained, batch(), rng()).parts["loss_diff"])
    assert all(gradient is not None for gradient in found.values())
    without = {name for name, gradient in found.items() if gradient.abs().max() < 1e-9}
    assert without == {"key.bias", "encoder.0.attention.key.bias", "encoder.1.attention.key.bias"}


def test_the_released_objective_learns_nothing_by_denoising_and_has_a_layer_that_nothing_uses():
    """D1 and D3, as they are."""
    trained = after_a_step(is_released=True)
    found = objective(is_released=True).losses(trained, batch(), rng())
    assert not found.parts["loss_diff"].requires_grad
    assert found.parts["loss_align"].requires_grad
    unused = [name for name, gradient in gradients(trained.adapter, found.loss).items() if gradient is None]
    assert unused == ["unused_value.weight", "unused_value.bias"]


def test_the_unet_does_not_learn():
    assert not any(parameter.requires_grad for parameter in model().denoiser.parameters())


def test_a_frozen_projection_is_among_what_is_saved_and_does_not_train():
    """D4."""
    projection = model(proj="frozen").projection
    assert isinstance(projection, FrozenProjection)
    assert not list(projection.parameters())
    assert set(projection.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("rows", [ONE_ROW, MANY_ROWS])
@pytest.mark.parametrize("proj", ["train", "frozen"])
def test_under_privacy_the_clipped_sum_is_that_of_a_naive_loop(proj, rows):
    trained = model(proj=proj)
    nn.init.normal_(trained.adapter.out.weight, std=0.1)

    def losses(module: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
        draws = ExampleRandom(0, 1, given["ids"].numpy())
        return objective().losses(module, given, draws).loss

    engine = assert_agrees(trained, losses, batch(rows) | {"ids": torch.arange(B)})
    assert not engine.ways()  # every layer has an exact rule
