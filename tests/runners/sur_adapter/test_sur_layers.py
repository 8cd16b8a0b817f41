"""The adapter by itself: sizes, what it computes at first, what it hears of other prompts."""

import pytest
import torch
from privlm.runners.sur_adapter.adapter import EncoderLayer, SurAdapter
from torch import nn

from privlm.errors import UsageError

WIDTH, LENGTH = 64, 7
TINY = {"depth": 2, "heads": 4, "feedforward": 128}


def adapter(**settings) -> SurAdapter:
    torch.manual_seed(0)
    return SurAdapter(WIDTH, **TINY | settings).eval()


def changed(**settings) -> SurAdapter:
    """After training, so to speak."""
    model = adapter(**settings)
    torch.manual_seed(1)
    nn.init.normal_(model.out.weight, std=0.5)
    return model


def states(num_prompts: int = 3) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(num_prompts, LENGTH, WIDTH)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_those_of_the_paper_and_of_the_tiny_base():
    assert size(SurAdapter(768, is_released=True)) == 14_571_520
    assert size(SurAdapter(768)) == 13_980_928
    assert size(adapter()) == 87_744


def test_the_encoder_layer_is_that_of_torch():
    torch.manual_seed(0)
    ours = EncoderLayer(WIDTH, 4, 128, 0.1).eval()
    theirs = nn.TransformerEncoderLayer(WIDTH, 4, 128, 0.1, batch_first=True).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    attention = ours.attention
    parts = (attention.query, attention.key, attention.value)
    copied = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
        "self_attn.out_proj.weight": attention.out.weight,
        "self_attn.out_proj.bias": attention.out.bias,
    }
    copied |= {name: value for name, value in ours.state_dict().items() if not name.startswith("attention.")}
    theirs.load_state_dict(copied)
    torch.testing.assert_close(ours(states()), theirs(states()), atol=1e-5, rtol=1e-5)


def test_first_weights_are_drawn_as_torch_draws_them():
    torch.manual_seed(0)
    layer = EncoderLayer(256, 4, 128, 0.1)
    bound = (6 / (4 * 256)) ** 0.5
    assert 0.99 * bound < float(layer.attention.key.weight.detach().abs().max()) <= bound
    assert not layer.attention.key.bias.any()


def test_at_first_the_residual_mix_changes_nothing():
    assert torch.equal(adapter(mix="residual", eta=0.5)(states()).states, states())


def test_at_first_the_mix_of_the_paper_shrinks():
    torch.testing.assert_close(adapter(mix="paper", eta=0.1)(states()).states, 0.9 * states())


def test_at_first_the_released_adapter_adds_a_random_bias():
    model = adapter(mix="paper", eta=0.1, is_released=True)
    assert model.out.bias.any()
    torch.testing.assert_close(model(states()).states, 0.9 * states() + 0.1 * model.out.bias)


@pytest.mark.parametrize("mix", ["paper", "residual"])
def test_without_eta_the_prompt_stays_as_it_is_to_the_bit(mix):
    assert torch.equal(changed(mix=mix, eta=0.5)(states(), eta=0.0).states, states())


def test_another_eta_can_be_asked_for():
    model = changed(mix="residual", eta=0.5)
    found = model(states(), eta=0.25)
    torch.testing.assert_close(found.states, states() + 0.25 * found.change)


def test_a_prompt_hears_nothing_of_its_neighbours():
    model, together = changed(), states()
    alone = torch.cat([model(prompt[None]).states for prompt in together])
    torch.testing.assert_close(model(together).states, alone, atol=1e-6, rtol=0)


def test_in_the_released_adapter_prompts_hear_each_other():
    """D2: attention runs over the first dimension, which is the batch."""
    model, together = changed(is_released=True), states()
    alone = torch.cat([model(prompt[None]).states for prompt in together])
    assert (model(together).states - alone).abs().max() > 0.01


def test_negative_prompts_stay_as_they_are():
    model, empty = changed(), torch.zeros(3, LENGTH, WIDTH)
    positive, negative = model.steer(states(), empty)
    assert torch.equal(negative, empty)
    torch.testing.assert_close(positive, model(states()).states)


def test_negative_prompts_leak_into_the_prompts_of_the_released_adapter_alone():
    """D2 under guidance."""
    others = torch.ones(3, LENGTH, WIDTH)
    for is_released in (False, True):
        model = changed(is_released=is_released)
        with_zeros, negative = model.steer(states(), torch.zeros_like(others), both=True)
        with_ones, _ = model.steer(states(), others, both=True)
        assert negative.shape == others.shape
        assert torch.allclose(with_zeros, with_ones, atol=1e-6) != is_released


def test_pairs_are_steered_without_their_neighbours_even_as_released():
    model, empty = changed(is_released=True), torch.zeros(3, LENGTH, WIDTH)
    together, _ = model.steer(states(), empty, both=True)
    alone, _ = model.steer(states()[1:2], empty[1:2], both=True)
    torch.testing.assert_close(together[1:2], alone)


def test_heads_that_do_not_fit_are_refused_with_both_numbers():
    with pytest.raises(UsageError, match=r"adapter.heads=5 does not divide the width of the text encoder, 64"):
        adapter(heads=5)


def test_every_other_width_is_taken_from_the_states():
    """D10: nothing is known by the name of a model."""
    torch.manual_seed(0)
    assert SurAdapter(1024, depth=1)(torch.randn(1, 3, 1024)).states.shape == (1, 3, 1024)
