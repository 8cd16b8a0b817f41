"""CLIP from a local folder: images and texts as unit vectors. Nothing is downloaded, and torchvision is not needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.diffusion.pixels import unit_pixels
from privlm.errors import UsageError
from privlm.models.loading import NO_CODE, NO_PICKLE, readable

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the channels, where the folder brings no preprocessor_config.json (Radford et al., ICML 2021)."""

MICRO_BATCH = 64


@dataclass(frozen=True)
class Clip:
    """model: a CLIPModel in evaluation mode. name: of its folder. mean, deviation: of the channels."""

    model: Any
    tokenizer: Any
    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def embed_images(self, images: Any) -> np.ndarray:
        """Unit vectors float32 [N, D] of images uint8, or floating point of [0, 1], [N, H, W, 3].

        Raises ValueError for what is no image, and for images that are not finite.
        """
        pixels = unit_pixels(images)
        if not np.isfinite(pixels).all():
            raise ValueError("images are not finite")
        return self._over([self._embed_images(part) for part in _parts(pixels)])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [N, D]; what is longer than the model's positions is cut, as CLIP does."""
        return self._over([self._embed_texts(list(part)) for part in _parts(texts)])

    @torch.inference_mode()
    def _embed_images(self, pixels: np.ndarray) -> Tensor:
        side = self.model.config.vision_config.image_size
        inputs = _square(torch.from_numpy(pixels).permute(0, 3, 1, 2), side)
        mean, deviation = torch.tensor(self.mean), torch.tensor(self.deviation)
        inputs = (inputs - mean[:, None, None]) / deviation[:, None, None]
        return self.model.visual_projection(self.model.vision_model(inputs.to(self.model.device)).pooler_output)

    @torch.inference_mode()
    def _embed_texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = (found[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        return self.model.text_projection(self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output)

    def _over(self, parts: list[Tensor]) -> np.ndarray:
        return nn.functional.normalize(torch.cat(parts).float(), dim=1).cpu().numpy()


def open_clip(path: str | Path) -> Clip:
    """The CLIPModel in a local folder, with its tokenizer.

    Raises UsageError for a folder that is absent, holds another kind of model, or cannot be loaded.
    """
    from transformers import AutoTokenizer, CLIPModel

    folder = Path(path).expanduser()
    kind = _settings(folder / "config.json").get("model_type")
    if kind is None:
        raise UsageError(f"{folder} holds no CLIP model (no config.json that names its kind): give a local folder")
    if kind != "clip":
        raise UsageError(f"{folder} holds a model of kind '{kind}', not clip: give the folder of a CLIPModel")
    with readable(folder):
        model = CLIPModel.from_pretrained(folder, local_files_only=True, **NO_PICKLE).requires_grad_(False).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **NO_CODE)
    channels = _settings(folder / "preprocessor_config.json")
    mean, deviation = channels.get("image_mean", MEAN), channels.get("image_std", DEVIATION)
    return Clip(model, tokenizer, folder.resolve().name, tuple(mean), tuple(deviation))


def _settings(path: Path) -> dict[str, Any]:
    """Empty where there is no such file. Raises UsageError for one that is no JSON object."""
    if not path.is_file():
        return {}
    with readable(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _parts(items: Any) -> list[Any]:
    return [items[start : start + MICRO_BATCH] for start in range(0, len(items), MICRO_BATCH)]


def _square(images: Tensor, side: int) -> Tensor:
    """Resized by their shorter edge with antialiasing, bicubic, and cut to the middle: [B, 3, side, side]."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = round(height * scale), round(width * scale)
    resized = nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return resized[..., top : top + side, left : left + side].clamp(0, 1)
