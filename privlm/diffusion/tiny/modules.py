"""The untrained parts of the small pipeline, of stock classes: 1.4 M, .14 M and .17 M parameters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from privlm.diffusion.scenes import SIZE

LATENT_CHANNELS = 16
LATENT_SIZE = 8
TEXT_WIDTH = 64

TOKEN_DEVIATION = 1.0
"""Of the initial token embeddings; CLIP's .02 learns slowly here."""

CROSS_ATTENTION_GAIN = 3.0
"""Of the initial queries and keys of cross attention: captions are told apart from the first steps on."""


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 64."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    embedding: Any = model.get_input_embeddings()
    torch.nn.init.normal_(embedding.weight, std=TOKEN_DEVIATION)
    return model


@torch.no_grad()
def make_unet() -> nn.Module:
    """Two resolutions, 8 x 8 and 4 x 4; captions are attended to at the lower one and in the middle."""
    unet: Any = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=TEXT_WIDTH,
    )
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.weight.mul_(CROSS_ATTENTION_GAIN)
    return unet


def make_autoencoder(scaling_factor: float) -> Any:
    """An AutoencoderKL: images of 32 x 32 <-> latents [16, 8, 8]."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=scaling_factor,
    )


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion; the clean latents are predicted, the easiest to learn here."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="sample",
    )
