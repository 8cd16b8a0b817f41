"""Tiny random pipelines of stock diffusers classes, as folders that save_pretrained has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from privlm.config import PipelineConfig, defaults

FAMILIES = ("sd1", "sd2", "sdxl")
HIDDEN, PROJECTION, LENGTH = 16, 12, 24
IMAGE = 16
"""Pixels of a side: latents of 8x8, and a VAE that halves."""

NO_PROMPT = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "in_channels": 4, "out_channels": 4}


def tokenizer() -> CLIPTokenizer:
    """Of single characters: each byte within a word, and at the end of one."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH)


def text_encoder(*, projected: bool = False, hidden: int = HIDDEN) -> Any:
    last = len(tokenizer()) - 1
    config = CLIPTextConfig(
        vocab_size=last + 1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=PROJECTION,
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # texts that differ are to look so
    return model.eval()


def unet(family: str = "sd1", **changes: Any) -> diffusers.UNet2DConditionModel:
    settings: dict[str, Any] = NO_PROMPT | {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": HIDDEN,
        "attention_head_dim": 4,
        "use_linear_projection": family != "sd1",
    }
    if family == "sdxl":
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        settings |= added | {"projection_class_embeddings_input_dim": 6 * 8 + PROJECTION, "cross_attention_dim": 24}
    return diffusers.UNet2DConditionModel(**settings | changes).eval()


def vae(**changes: Any) -> diffusers.AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": IMAGE,
        "scaling_factor": 0.7,
    }
    return diffusers.AutoencoderKL(**settings | changes).eval()


def scheduler(family: str = "sd1") -> diffusers.DDIMScheduler:
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def pipeline(family: str = "sd1", seed: int = 0) -> Any:
    """A stock pipeline of random weights; torch's global generator is not moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": vae(),
            "text_encoder": text_encoder(),
            "tokenizer": tokenizer(),
            "unet": unet(family),
            "scheduler": scheduler(family),
        }
        if family == "sdxl":
            second = text_encoder(projected=True, hidden=8)
            parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer()}
            return diffusers.StableDiffusionXLPipeline(**parts)
    sd_parts = {**parts, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**sd_parts)


def pipeline_folder(folder: Path, family: str = "sd1", seed: int = 0, **options: Any) -> Path:
    """A folder of such a pipeline. options: of save_pretrained."""
    pipeline(family, seed).save_pretrained(folder, **options)
    return folder


def config_of(folder: Path | None, **changes: Any) -> PipelineConfig:
    return defaults(PipelineConfig, "model", "tiny_sd", path=None if folder is None else str(folder), **changes)
