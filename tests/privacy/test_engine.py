"""The logical step: one clipped sum whatever the pieces, in float32, and a model that stays itself."""

import copy
import math

import pytest
import torch
from naive import clipped_sums, naive, release
from small import gradients, losses, small_batch, small_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privlm.privacy.engine import PrivacyEngine


@pytest.mark.parametrize("micro_batch_size", [1, 7, 32])
def test_micro_batch_size_does_not_change_the_sum(micro_batch_size: int) -> None:
    model, batch = small_model(), small_batch()
    engine = PrivacyEngine(model, clipping_norm=0.3)
    clipped_sums(engine, losses, batch, micro_batch_size)
    _, expected = naive(model, losses, batch, 0.3)
    torch.testing.assert_close(
        gradients(model).double(), torch.cat([x.flatten() for x in expected]), rtol=1e-5, atol=1e-6
    )


def test_sum_is_divided_by_the_expected_batch_size() -> None:
    model, batch = small_model(), small_batch(5)
    engine = PrivacyEngine(model, clipping_norm=0.3)
    clipped_sums(engine, losses, batch)
    total = gradients(model)
    engine.backward(losses, batch)
    release(engine, step=1, noise_multiplier=0.0, expected_batch_size=12.8)
    torch.testing.assert_close(gradients(model), total / 12.8)


def test_statistics_count_clipped_records() -> None:
    model, batch = small_model(), small_batch()
    norm_B, _ = naive(model, losses, batch, 1.0)
    engine = PrivacyEngine(model, clipping_norm=0.3)
    (statistics,), _ = clipped_sums(engine, losses, batch)
    assert statistics.num_clipped == int((norm_B > 0.3).sum()) > 0
    assert statistics.num_nonfinite == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_record_without_a_finite_gradient_contributes_nothing(poison: float) -> None:
    model, batch = small_model(), small_batch(8)
    clean = {name: value[1:] for name, value in batch.items()}
    clipped_sums(PrivacyEngine(model, clipping_norm=0.3), losses, clean)
    expected, other = gradients(model), small_model()
    batch["x"][0, 0, 0] = poison
    (statistics,), _ = clipped_sums(PrivacyEngine(other, clipping_norm=0.3), losses, batch)
    assert statistics.num_nonfinite == 1
    torch.testing.assert_close(gradients(other), expected)


def test_clipping_is_float32_inside_bfloat16_autocast() -> None:
    model, batch = small_model(), small_batch(8)
    engine = PrivacyEngine(model, clipping_norm=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = engine.backward(losses, batch)
    release(engine, noise_multiplier=0.0)
    assert statistics.norms.dtype == torch.float32
    assert gradients(model).norm() <= 8e-3 * (1 + 1e-5)  # in bfloat16 the factors alone would be off by 4e-3
    norm_B, _ = naive(model, losses, batch, 1.0)
    torch.testing.assert_close(statistics.norms.double(), norm_B, rtol=0.05, atol=0)


def test_half_precision_parameters_get_gradients_of_their_type() -> None:
    model, batch = small_model().bfloat16(), small_batch(8)
    batch["x"] = batch["x"].bfloat16()
    engine = PrivacyEngine(model, clipping_norm=1.0)
    clipped_sums(engine, losses, batch)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_per_layer_clipping_bounds_every_layer() -> None:
    model, batch = small_model(), small_batch(8)
    engine = PrivacyEngine(model, clipping_norm=1e-3, clipping="per_layer")
    (statistics,), sums = clipped_sums(engine, losses, {name: value[:1] for name, value in batch.items()})
    assert statistics.num_clipped == 1
    for weight, bias in zip(sums[::2], sums[1::2], strict=True):
        length = torch.cat([weight.flatten(), bias]).norm()
        torch.testing.assert_close(float(length), 1e-3 / math.sqrt(3), rtol=1e-5, atol=0)


def test_activation_checkpointing_gives_the_same_sum() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([small_model() for _ in range(2)])
            self.between = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.between(checkpoint(self.blocks[0], x, use_reentrant=False))
            return checkpoint(self.blocks[1], x, use_reentrant=False)

    model, batch = Checkpointed(), small_batch(8)
    norm_B, expected = naive(model, losses, batch, 0.3)
    (statistics,), sums = clipped_sums(PrivacyEngine(model, clipping_norm=0.3), losses, batch)
    torch.testing.assert_close(statistics.norms.double(), norm_B, rtol=1e-5, atol=0)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-5, atol=1e-6)


def test_model_is_as_before_after_a_failure_and_after_detach() -> None:
    model, batch = small_model(), small_batch(4)
    expected = losses(model, batch)
    engine = PrivacyEngine(model, clipping_norm=1.0)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        engine.backward(lambda model, x: model(x).sum(1), torch.zeros(2, 7))
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(losses(model, batch), expected, rtol=0, atol=0)
    engine.detach()
    duplicate = copy.deepcopy(model)
    losses(duplicate, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in duplicate.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
