"""What a text-to-image model trains as one module: the UNet, and the text encoder where it learns too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Denoiser(nn.Module):
    """unet: a UNet2DConditionModel. text_encoder: a CLIPTextModel, or None where the states of captions are given.

    Legend: B examples, C channels, L tokens, d width of the text.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def states(self, input_ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, d]. Padding is attended to, as the pipelines of diffusers do."""
        assert self.text_encoder is not None, "this model is given the states of its captions"
        return self.text_encoder(input_ids).last_hidden_state

    def forward(
        self, noisy: Tensor, timesteps: Tensor, states: Tensor, added: Mapping[str, Any] | None = None
    ) -> Tensor:
        """noisy [B, C, h, w], timesteps int64 [B], states [B, L, d] -> what the schedule predicts, [B, C, h, w].

        added: of SDXL: text_embeds [B, p] and time_ids [B, 6].
        """
        conditions = None if added is None else dict(added)
        return self.unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=conditions).sample
