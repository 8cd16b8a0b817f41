"""Classification: cross entropy of each example, and predictions."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample


class ClassificationData(Protocol):
    """Examples by index: EncodedSplit (token ids) or FeatureSplit (cached features)."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, device: torch.device | None = None) -> dict[str, Tensor]: ...


class Classification(Objective):
    """The objective for batches {labels, **inputs of the model}, such as token ids or cached features."""

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """Cross entropy of each example, float32 [B]; draws nothing from `rng`."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs)
        return PerExample(nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none"))


@torch.inference_mode()
def predict(model: nn.Module, data: ClassificationData, micro_batch_size: int) -> np.ndarray:
    """The most likely class of each example, int64 [N], in evaluation mode; examples of like length share a batch."""
    device = next(model.parameters()).device
    predictions = np.empty(len(data), dtype=np.int64)
    order = np.argsort(data.lengths, kind="stable")
    with evaluation_mode(model):
        for start in range(0, len(order), micro_batch_size):
            indices = order[start : start + micro_batch_size]
            batch = data.batch(indices, device)
            del batch["labels"]
            predictions[indices] = model(**batch).argmax(dim=-1).cpu().numpy()
    return predictions
