"""Features of a frozen encoder, computed once: what the head-only adapter trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privlm.data.encoding import EncodedSplit
from privlm.models.encoder import EncoderClassifier
from privlm.models.evaluation_mode import evaluation_mode

_NUM_REMEMBERED = 2  # a training and a test split
_remembered: dict[str, Tensor] = {}


@dataclass(frozen=True)
class FeatureSplit:
    """N examples as features, float32 [N, H], with labels, int64 [N]; read like an EncodedSplit."""

    features: Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """All equal: batches need no sorting."""
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: Sequence[int] | np.ndarray, device: torch.device | None = None) -> dict[str, Tensor]:
        """features [B, H] and labels [B]."""
        tensors = {"features": self.features[indices], "labels": torch.from_numpy(self.labels[indices])}
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def remembered_features(
    model: EncoderClassifier,
    split: EncodedSplit,
    micro_batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """What `compute_features` gives, computed once per process for equal encoders and texts.

    The seeds of a sweep and the runs of one audit share them. In memory only: features tell of private texts.
    """
    key = _digest(model, split, micro_batch_size)
    if key not in _remembered:
        while len(_remembered) >= _NUM_REMEMBERED:
            del _remembered[next(iter(_remembered))]
        _remembered[key] = compute_features(model, split, micro_batch_size, progress)
    else:
        progress(len(split))
    return _remembered[key]


def _digest(model: EncoderClassifier, split: EncodedSplit, micro_batch_size: int) -> str:
    """Of all that features depend on, down to the rounding; the head is no part of it."""
    digest = hashlib.sha256(split.lengths.tobytes())
    digest.update(repr((model.pooling, model.normalize_features, micro_batch_size)).encode())
    for ids in (*split.input_ids, *(split.token_type_ids or ())):
        digest.update(ids)
    for name, weight in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def compute_features(
    model: EncoderClassifier,
    split: EncodedSplit,
    micro_batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Pooled features of every example, float32 [N, H] on the CPU, in evaluation mode.

    Args:
        progress: called with the number of examples done after each micro-batch.
    """
    device = next(model.parameters()).device
    order = np.argsort(split.lengths, kind="stable")
    pieces = []
    with evaluation_mode(model):
        for start in range(0, len(order), micro_batch_size):
            batch = split.batch(order[start : start + micro_batch_size], device)
            del batch["labels"]
            pieces.append(model.features(**batch).float().cpu())
            progress(min(start + micro_batch_size, len(order)))
    features = torch.cat(pieces)
    return features[np.argsort(order)].clone()
