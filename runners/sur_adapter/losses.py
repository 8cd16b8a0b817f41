"""What the SUR adapter learns by: the denoising loss on its states, and two distances of distributions over features.

Legend: B examples, L tokens, d width of the text, R rows of a language model (1, or L), h its width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import Denoising, added_of
from privlm.diffusion.latent_data import one_view
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample

from .adapter import SurAdapter


def kl_feature(trained: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(trained) || softmax(target)) over the features, as the paper's distillation has it: [B, L, d] each ->
    [B, L]. The trained side is the left one.
    """
    log_trained, log_target = trained.float().log_softmax(-1), target.float().log_softmax(-1)
    return (log_trained.exp() * (log_trained - log_target)).sum(-1)


def mse(trained: Tensor, target: Tensor) -> Tensor:
    """Mean over the features, [B, L]."""
    return (trained.float() - target.float()).square().mean(-1)


def cosine(trained: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of the angle between the features, [B, L]."""
    return 1 - F.cosine_similarity(trained.float(), target.float(), dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl_feature": kl_feature, "mse": mse, "cosine": cosine}


def over_positions(distance_BL: Tensor, mask_BL: Tensor, *, summed: bool) -> Tensor:
    """The sum, or the mean, over the positions that count: [B]."""
    sums = torch.where(mask_BL, distance_BL, 0.0).sum(dim=1)
    return sums if summed else sums / mask_BL.sum(dim=1).clamp(min=1)


class FrozenProjection(nn.Module):
    """A linear layer that does not train: its values are buffers, so that they are saved with what does."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        layer = nn.Linear(width, text_width)
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self.weight, self.bias)


def make_projection(kind: str, width: int, text_width: int) -> nn.Module:
    """From a language model of `width` to the text encoder's. kind: train | frozen."""
    return nn.Linear(width, text_width) if kind == "train" else FrozenProjection(width, text_width)


class SurModel(nn.Module):
    """The frozen UNet and what is trained before it; projection: None where no language model has a part."""

    def __init__(self, denoiser: Denoiser, adapter: SurAdapter, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False)
        self.adapter = adapter
        self.projection = projection


class SurObjective(Objective):
    """Denoising told the adapted narrative prompt; w_align times the distance of the adapted states from those of the
    prompt by keywords; w_llm times that of the adapter's encoder from the projected language model (section 2.2); and
    w_keep times the distance of the keywords' states behind the adapter from what they were.

    Batches have, beside what Denoising reads of the narrative prompt: its text_mask bool [B, L], with w_align or w_keep
    keyword_mask alike and keyword_ids int64 [B, L] or keyword_states [B, L, d], with w_llm vectors [B, R, h] and
    vector_mask bool [B, R].

    losses: a LossesConfig. is_released: the adapted states are cut from the graph before the UNet, as in the released
    code, so that nothing is learnt by denoising.
    """

    def __init__(self, denoising: Denoising, losses: Any, *, is_released: bool = False) -> None:
        self.denoising = denoising
        self.settings = losses
        self.is_released = is_released

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """Parts: loss_diff, loss_align, loss_llm, loss_keep, without their weights."""
        assert isinstance(model, SurModel)
        batch = one_view(batch, rng)
        adapted = model.adapter(self.denoising.states(model.denoiser, batch, rng).float())
        states = adapted.states.detach() if self.is_released else adapted.states
        told = {"latents": batch["latents"], "states": states, "rng": rng, "added": added_of(batch)}
        parts = {"loss_diff": self.denoising.loss_of(model.denoiser, **told)}
        loss = parts["loss_diff"]
        if self.settings.w_align:
            parts["loss_align"] = self._align(adapted.states, _keywords(model, batch), batch)
            loss = loss + self.settings.w_align * parts["loss_align"]
        if self.settings.w_llm:
            assert model.projection is not None
            parts["loss_llm"] = self._llm(adapted.encoded, model.projection(batch["vectors"]), batch)
            loss = loss + self.settings.w_llm * parts["loss_llm"]
        if self.settings.w_keep:
            parts["loss_keep"] = self._keep(model.adapter, _keywords(model, batch), batch)
            loss = loss + self.settings.w_keep * parts["loss_keep"]
        return PerExample(loss, parts=parts)

    def _keep(self, adapter: SurAdapter, keywords: Tensor, batch: Batch) -> Tensor:
        kept = adapter(keywords.float()).states
        return self._distance(self.settings.align, kept, keywords, batch["keyword_mask"])

    def _align(self, states: Tensor, keywords: Tensor, batch: Batch) -> Tensor:
        """A position is padding where it is so in both prompts."""
        words_BL = batch["text_mask"] | batch["keyword_mask"]
        return self._distance(self.settings.align, states, keywords, words_BL)

    def _llm(self, encoded: Tensor, projected: Tensor, batch: Batch) -> Tensor:
        """One row is compared with all positions, several with one each."""
        target_BLd = projected.expand_as(encoded)
        return self._distance(self.settings.llm, encoded, target_BLd, batch["text_mask"], batch["vector_mask"])

    def _distance(
        self, kind: str, trained: Tensor, target: Tensor, words: Tensor, present: Tensor | bool = True
    ) -> Tensor:
        """words: positions that are no padding, bool [B, L]. present: those that have a target at all."""
        counted = words if self.settings.mask_padding else torch.ones_like(words)
        summed = kind == "kl_feature" and self.settings.kl_reduction == "batch"
        return over_positions(DISTANCES[kind](trained, target), counted & present, summed=summed)


def _keywords(model: SurModel, batch: Batch) -> Tensor:
    """States of the prompts by keywords, [B, L, d]."""
    return batch["keyword_states"] if "keyword_states" in batch else model.denoiser.states(batch["keyword_ids"])
