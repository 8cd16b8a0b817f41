"""Principal components of patches of 4 x 4 pixels: the latents that the autoencoder of the small pipeline is taught."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATCH_SIZE = 4


@dataclass(frozen=True)
class Components:
    """mean: [48] of a patch's numbers. directions: orthonormal, [48, C], the largest variance first.

    deviation: of all latents together; one number for all channels, since whitened ones are harder to learn.
    """

    mean: Tensor
    directions: Tensor
    deviation: float

    @classmethod
    def of(cls, images: Tensor, num_components: int) -> Components:
        """images: float [N, 3, H, W]."""
        patches = _patches(images)
        mean = patches.mean(dim=0)
        centred = (patches - mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        directions = vectors.flip(1)[:, :num_components].float()
        directions = directions * directions.sum(dim=0).sign()  # an eigenvector has no sign of its own
        return cls(mean, directions, values.flip(0)[:num_components].mean().sqrt().item())

    def encode(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, C, H / 4, W / 4], not scaled."""
        n, _, height, width = images.shape
        latents = (_patches(images) - self.mean) @ self.directions
        return latents.view(n, height // PATCH_SIZE, width // PATCH_SIZE, -1).permute(0, 3, 1, 2).contiguous()


def _patches(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N * H / 4 * W / 4, 48]."""
    patches = torch.nn.functional.unfold(images, PATCH_SIZE, stride=PATCH_SIZE)
    return patches.permute(0, 2, 1).reshape(-1, images.shape[1] * PATCH_SIZE**2)
