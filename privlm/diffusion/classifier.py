"""shapes_cnn: a small network that names colour, shape and number of what is on an image of coloured shapes.

The second judge beside the rule of privlm.diffusion.analyser, trained on renders alone, and a feature extractor for
distances between sets of images. `privlm build shapes_cnn` trains another one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm import files
from privlm.diffusion.analyser import NOTHING, Mask, Seen, resolved_mask
from privlm.diffusion.pixels import unit_pixels
from privlm.diffusion.scenes import COUNTS, PALETTE, SHAPES, SIZE
from privlm.errors import UsageError
from privlm.models.evaluation_mode import evaluation_mode
from privlm.models.loading import readable

EMBEDDED = Path(__file__).parent / "embedded" / "shapes_cnn"
WEIGHTS = "model.safetensors"

MANY = max(COUNTS) + 1
"""What a count says where there are more than any scene has; 0 where there is nothing."""

NUM_FEATURES = 64
CHANNELS = (32, 48, 64)
MICRO_BATCH = 256  # images at a time; changes rounding alone


class ShapesCnn(nn.Module):
    """Images float32 [B, 3, 32, 32] of [0, 1] -> logits of color [B, 6], shape [B, 3] and count [B, 5], 0 to MANY.

    The mean over the places of an image tells the number, the greatest value the shape. Nothing is normalised over an
    image, which would take the number away.

    rms: the root mean square of its features on renders.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel, stride=2, padding=1)
            for kernel, (narrow, wide) in zip((4, 3, 3), pairwise((3, *CHANNELS)), strict=True)
        )
        self.hidden = nn.Linear(2 * CHANNELS[-1], NUM_FEATURES)
        self.color = nn.Linear(NUM_FEATURES, len(PALETTE))
        self.shape = nn.Linear(NUM_FEATURES, len(SHAPES))
        self.count = nn.Linear(NUM_FEATURES, MANY + 1)
        self.rms = nn.Buffer(torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """float32 [B, 64], what the three heads see."""
        inside = 1 - images  # white is 0
        for convolution in self.convolutions:
            inside = nn.functional.relu(convolution(inside))
        pooled = torch.cat([inside.mean(dim=(2, 3)), inside.amax(dim=(2, 3))], dim=1)
        return nn.functional.relu(self.hidden(pooled))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {"color": self.color(features), "shape": self.shape(features), "count": self.count(features)}


@dataclass(frozen=True)
class Classifier:
    """A trained ShapesCnn. digest: sha256 of its file, 64 hex digits; names it in results."""

    model: ShapesCnn
    digest: str

    def read(self, images: Any, mask: Mask = "patch") -> list[Seen]:
        """What it names on images uint8, or floating point of [0, 1], [N, 32, 32, 3]; a count of MANY means as many or
        more. NOTHING on images that are not finite.

        mask: pixels that it sees as white. Raises ValueError for what is no image of 32 x 32.
        """
        pixels = _of_its_size(images)
        finite = np.isfinite(pixels).all(axis=(1, 2, 3))
        pixels[:, resolved_mask(mask, SIZE, SIZE)] = 1
        logits = self._over(pixels, self.model)
        named = {head: found.argmax(axis=1) for head, found in logits.items()}
        return [
            _seen(color, shape, count if is_finite else 0)
            for color, shape, count, is_finite in zip(*named.values(), finite, strict=True)
        ]

    def features(self, images: Any) -> np.ndarray:
        """Of its last hidden layer, float32 [N, 64], with a mean square of 1 on renders: kernels of distances have no
        scale of their own. Nothing is masked. Raises ValueError for images that are not finite.
        """
        pixels = _of_its_size(images)
        if not np.isfinite(pixels).all():
            raise ValueError("features of images that are not finite")
        return self._over(pixels, lambda batch: {"features": self.model.features(batch) / self.model.rms})["features"]

    @torch.inference_mode()
    def _over(self, pixels: np.ndarray, function: Any) -> dict[str, np.ndarray]:
        device = next(self.model.parameters()).device
        inputs = torch.from_numpy(np.nan_to_num(pixels, nan=1.0)).permute(0, 3, 1, 2)
        with evaluation_mode(self.model):
            found = [function(batch.to(device)) for batch in inputs.split(MICRO_BATCH)]
        return {name: torch.cat([part[name] for part in found]).cpu().numpy() for name in found[0]}


def _of_its_size(images: Any) -> np.ndarray:
    pixels = unit_pixels(images)
    if pixels.shape[1:3] != (SIZE, SIZE):
        raise ValueError(f"shapes_cnn reads images of {SIZE} x {SIZE}, not {pixels.shape[1]} x {pixels.shape[2]}")
    return pixels


def _seen(color: int, shape: int, count: int) -> Seen:
    return Seen(list(PALETTE)[color], SHAPES[shape], int(count)) if count else NOTHING


def load_classifier(folder: Path = EMBEDDED) -> Classifier:
    """The one that is shipped, or one that `privlm build shapes_cnn` has made.

    Raises UsageError where its file is absent or not the one that was written.
    """
    _refuse_damage(folder)
    from safetensors.torch import load

    content = (folder / WEIGHTS).read_bytes()
    model = ShapesCnn()
    with readable(folder):
        model.load_state_dict(load(content))
    return Classifier(model.requires_grad_(False).eval(), hashlib.sha256(content).hexdigest())


def save_classifier(model: ShapesCnn, folder: Path) -> None:
    """Writes the folder that `load_classifier` reads, with the digest of the weights; all of it or nothing."""
    from safetensors.torch import save_file

    def fill(temporary: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS)
        files.write_digests(temporary)

    files.write_directory(folder, fill)


def _refuse_damage(folder: Path) -> None:
    try:
        damaged = files.damaged_files(folder)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no shapes_cnn: make one with `privlm build shapes_cnn {folder}`") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / files.DIGESTS} cannot be read ({error}): make shapes_cnn again") from error
    if damaged:
        raise UsageError(
            f"{folder}: {damaged[0]} is not what was written; make it again with `privlm build shapes_cnn`"
        )
