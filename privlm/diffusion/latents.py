"""Images as the latents of a frozen autoencoder, and captions as states of a frozen text encoder, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.diffusion import shards
from privlm.diffusion.image_files import Fitted, fitted
from privlm.diffusion.image_rows import ImageRow
from privlm.diffusion.latent_data import LatentData, Latents, Shared, one_view
from privlm.errors import UsageError
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy import keyed_random

__all__ = [
    "Autoencoder",
    "LatentData",
    "Latents",
    "Shared",
    "View",
    "encode_images",
    "encode_texts",
    "one_view",
    "views",
]

SHARD = 512
"""Images of a shard: what a kill may cost."""

TEXTS = 4096
"""Captions of a shard."""

Encode = Callable[[list[str]], Tensor | Mapping[str, Tensor]]
"""B captions -> text_states [B, L, d], or several such by name (text_states, pooled)."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Autoencoder:
    """A VAE of diffusers, or what has its `encode(image).latent_dist.mode()`; frozen.

    scaling_factor, shift: of its latents, which the UNet sees as (latent - shift) * scaling_factor. factor: pixels of a
    side of the image to one of the latent. digest: of its weights and settings.
    """

    vae: nn.Module
    scaling_factor: float
    shift: float
    factor: int
    digest: str

    @torch.no_grad()
    def latents(self, pixels: np.ndarray) -> Tensor:
        """The mode of the posterior, scaled, float32 [B, C, R/factor, R/factor]. pixels: uint8 [B, R, R, 3]."""
        like = self._weight
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(like.device, like.dtype) / 127.5 - 1
        with evaluation_mode(self.vae):
            encode: Any = self.vae.encode
            mode = encode(image).latent_dist.mode()
        return ((mode.float() - self.shift) * self.scaling_factor).cpu()

    @property
    def kind(self) -> str:
        """Device and precision, by which latents differ in their last digits."""
        return f"{self._weight.device.type} {self._weight.dtype}"

    @property
    def _weight(self) -> Tensor:
        return next(chain(self.vae.parameters(), self.vae.buffers()))


@dataclass(frozen=True)
class View:
    """place: of the crop, see privlm.diffusion.image_files.fitted."""

    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


# --- images ---------------------------------------------------------------------------------------------------------


def encode_images(
    rows: Sequence[ImageRow],
    data: Any,
    autoencoder: Autoencoder,
    *,
    folder: Path | None = None,
    augment: bool = False,
    batch_size: int = 16,
    progress: Progress = lambda done: None,
) -> Latents:
    """The latents of images at data.resolution.

    data: an ImagesConfig, of which resolution, crop, flip, num_views and seed count. folder: where they are kept, by
    all of these, the autoencoder and the images; a later call reads them, a killed one is gone on with. augment: with
    the random views of training, else the centre alone. batch_size: images at once, each with its views; memory only.
    progress: is called with the number of images done.

    Raises UsageError: no images, a resolution that the autoencoder cannot halve so often, or latents not finite.
    """
    if not rows:
        raise UsageError("data: there are no images to encode")
    if data.resolution % autoencoder.factor:
        next_one = (data.resolution // autoencoder.factor + 1) * autoencoder.factor
        raise UsageError(
            f"data.resolution={data.resolution} is no multiple of {autoencoder.factor}, by which the model's "
            f"autoencoder makes images smaller: choose one, e.g. {next_one}"
        )
    pieces = []
    for start in range(0, len(rows), SHARD):
        piece = rows[start : start + SHARD]
        key = _key(piece, data, autoencoder, augment=augment)
        compute = partial(_encoded, piece, data, autoencoder, augment=augment, batch_size=batch_size)
        pieces.append(shards.kept(folder, key, compute))
        progress(start + len(piece))
    return Latents(*(torch.cat([piece[name] for piece in pieces]) for name in ("values", "time_ids")))


def views(row: ImageRow, data: Any, *, augment: bool) -> list[View]:
    """How an image is looked at: by its centre, mirrored too where data.flip; or by random crops, each mirrored or not.

    As many of each image, drawn by its content and data.seed.
    """
    if not augment:
        return [View()]
    if data.crop == "centre":
        return [View(), View(flip=True)] if data.flip else [View()]
    draws = [
        keyed_random.generator("view of an image", data.seed, row.digest, number) for number in range(data.num_views)
    ]
    return [View((rng.random(), rng.random()), bool(data.flip and rng.random() < 0.5)) for rng in draws]


def _key(rows: Sequence[ImageRow], data: Any, autoencoder: Autoencoder, *, augment: bool) -> str:
    return shards.key_of(
        autoencoder=[autoencoder.digest, autoencoder.scaling_factor, autoencoder.shift, autoencoder.kind],
        resolution=data.resolution,
        views=[[(view.place, view.flip) for view in views(row, data, augment=augment)] for row in rows],
        images=[row.digest for row in rows],
    )


def _encoded(
    rows: Sequence[ImageRow], data: Any, autoencoder: Autoencoder, *, augment: bool, batch_size: int
) -> dict[str, Tensor]:
    """values [N, V, C, h, w] and time_ids [N, V, 6]."""
    values, time_ids = [], []
    for start in range(0, len(rows), batch_size):
        piece = rows[start : start + batch_size]
        seen = [list(_looked_at(row, data, augment=augment)) for row in piece]
        pixels = np.stack([[one.pixels for one in of_row] for of_row in seen])
        latents = autoencoder.latents(pixels.reshape(-1, *pixels.shape[2:])).unflatten(0, pixels.shape[:2])
        _require_finite(latents, piece, autoencoder)
        values.append(latents)
        time_ids.append(torch.tensor([[one.time_ids for one in of_row] for of_row in seen], dtype=torch.float32))
    return {"values": torch.cat(values), "time_ids": torch.cat(time_ids)}


def _looked_at(row: ImageRow, data: Any, *, augment: bool) -> Iterator[Fitted]:
    picture = row.picture()
    for view in views(row, data, augment=augment):
        yield fitted(picture, data.resolution, view.place, flip=view.flip)


def _require_finite(latents: Tensor, rows: Sequence[ImageRow], autoencoder: Autoencoder) -> None:
    bad = [row.where for row, latent in zip(rows, latents, strict=True) if not latent.isfinite().all()]
    if bad:
        raise UsageError(
            f"the model's autoencoder gives numbers that are not finite for {bad[0]} ({autoencoder.kind}): use one "
            "that works in this precision, or float32 (trainer.precision=fp32)"
        )


# --- captions -------------------------------------------------------------------------------------------------------


def encode_texts(
    texts: Sequence[str],
    encode: Encode,
    *,
    digest: str,
    folder: Path | None = None,
    batch_size: int = 64,
    progress: Progress = lambda done: None,
) -> dict[str, Shared]:
    """What an encoder makes of captions, each caption once: for LatentData.

    digest: of the encoder,
    its tokenizer and what is asked of it. folder, progress: as of encode_images; of the different captions.

    Raises UsageError: no captions, or states that are not finite.
    """
    unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    if not unique:
        raise UsageError("data: there are no captions to encode")
    pieces = []
    for start in range(0, len(unique), TEXTS):
        piece = list(unique)[start : start + TEXTS]
        key = shards.key_of(encoder=digest, texts=piece)
        pieces.append(shards.kept(folder, key, partial(_states, piece, encode, batch_size)))
        progress(start + len(piece))
    of = torch.tensor([unique[text] for text in texts])
    return {name: Shared(torch.cat([piece[name] for piece in pieces]), of) for name in pieces[0]}


@torch.no_grad()
def _states(texts: Sequence[str], encode: Encode, batch_size: int) -> dict[str, Tensor]:
    parts = []
    for start in range(0, len(texts), batch_size):
        states = encode(list(texts[start : start + batch_size]))
        named = {"text_states": states} if isinstance(states, Tensor) else states
        parts.append({name: tensor.cpu() for name, tensor in named.items()})
        if not all(tensor.isfinite().all() for tensor in named.values()):
            raise UsageError("the model's text encoder gives numbers that are not finite: use trainer.precision=fp32")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
