"""What a guide sees of an image: the last hidden states of a CLIP vision model, which stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from privlm.errors import UsageError
from privlm.models.loading import NO_PICKLE, quiet, readable

from .config import TINY_VISION
from .questions import Question

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the channels red, green, blue, as CLIP was trained (Radford et al., arXiv 2103.00020)."""

TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
"""Shape of task.vision=tiny."""


class Sight:
    """Looks at the images of questions.

    name: task.vision, `tiny` for a random model of a small shape, or a folder that CLIPVisionModel loads. folder: what
    the field image is relative to. seed: of the random model.
    """

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name = name
        self.folder = folder
        self.seed = seed

    @cached_property
    def model(self) -> Any:
        """Raises UsageError for a folder that holds no CLIP vision model."""
        if self.name == TINY_VISION:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return CLIPVisionModel(CLIPVisionConfig(**TINY)).eval().requires_grad_(False)
        with readable(Path(self.name).expanduser()), quiet():
            vision: Any = CLIPVisionModel
            return vision.from_pretrained(Path(self.name).expanduser(), **NO_PICKLE).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """D of the features."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def features(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """float32 [B, P, D], one token for the image and one for each patch, and whether there is an image, float32
        [B]; zeros where there is none. Raises UsageError, naming file and row, for an image that cannot be read.
        """
        seen = [number for number, question in enumerate(questions) if question.image]
        num_tokens = (self.model.config.image_size // self.model.config.patch_size) ** 2 + 1
        features_BPD = torch.zeros(len(questions), num_tokens, self.width)
        has_image_B = torch.zeros(len(questions))
        if seen:
            pixels = torch.stack([self._pixels(questions[number]) for number in seen])
            features_BPD[seen] = self.model(pixel_values=pixels).last_hidden_state.float()
            has_image_B[seen] = 1.0
        return features_BPD, has_image_B

    def digest(self, question: Question) -> int:
        """A number that tells images apart, 0 where there is none."""
        if not question.image:
            return 0
        content = read_image(question, self.folder)
        return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") + 1

    def _pixels(self, question: Question) -> Tensor:
        """float32 [3, S, S]: the middle square of the image, resized, its channels normalised."""
        read_image(question, self.folder)
        side = int(self.model.config.image_size)
        try:
            image = Image.open(self.folder / question.image).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(
                f"{question.where}: field 'image': {question.image} is no image that can be read"
            ) from error
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        square = image.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BICUBIC)
        values = (np.asarray(square, dtype=np.float32) / 255 - np.array(MEAN)) / np.array(STD)
        return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)


def read_image(question: Question, folder: Path) -> bytes:
    """Raises UsageError, naming file and row, where there is none."""
    try:
        return (folder / question.image).read_bytes()
    except OSError as error:
        raise UsageError(f"{question.where}: field 'image': no file {folder / question.image}") from error


def images_fingerprint(questions: Sequence[Question], folder: Path) -> str:
    """Of all images that the questions name. Raises UsageError as `read_image`."""
    contents = (read_image(question, folder) for question in questions if question.image)
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
