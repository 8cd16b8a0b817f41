"""Canaries of an audited run: they stand in place of training records and take the road of any record.

Canary i replaces one record of the training set, so that N, the sampling rate and the claimed epsilon are those of the
run without canaries. Its coin says whether it contributes: a canary that is out has loss 0 and so gradient 0, which is
the same as an absent record. A canary that is in is sampled, clipped and noised like every record.

White box (dirac): canary i has one parameter of its own, and a gradient of ten clipping norms on it; its score is what
the noisy releases add up to there. Black box (mislabel, random_tokens): canary i is a real record with a wrong label,
or with random tokens; its score is by how much training lowers its loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm import files
from privlm.errors import UsageError
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy import keyed_random
from privlm.training.batches import Indices, TrainingData
from privlm.training.objective import Batch, ExampleRandom, PerExample

Losses = Callable[[nn.Module, Batch, ExampleRandom], PerExample]

RAW_NORM = 10.0
"""Clipping norms of a gradient canary before clipping: clipping that does not happen is then seen."""

NUMBER = "canary_number"
"""Key of the batch: the number of a canary, or the number of canaries for an ordinary record."""

MODULE = "audit_canaries"
IGNORED_LABEL = -100  # of a token that a language model is not to predict
SCORING_BATCH = 64


class Canaries(ABC):
    """The canaries of one run; a subclass says what they contribute and how they are scored.

    settings: an AuditConfig (privlm.privacy.schema) or any object with its fields.
    folder: where coins and scores are written; None on processes other than the main one.
    """

    def __init__(self, settings: Any, folder: Path | None) -> None:
        self.num_canaries: int = settings.num_canaries
        self.seed: int = settings.seed
        self.folder = folder
        self.coins_m = keyed_random.generator("canary coins", self.seed).random(self.num_canaries) < 0.5

    def plant(self, model: nn.Module, data: TrainingData, losses: Losses) -> tuple[TrainingData, Losses]:
        """Data and losses with the canaries in them; the model must be in the state in which training starts.

        Raises UsageError where the training set is too small for them, or is no data for this kind of canary.
        """
        if 2 * self.num_canaries > len(data):
            raise UsageError(
                f"privacy.audit.num_canaries={self.num_canaries} would replace more than half of the {len(data)} "
                "training records: lower it"
            )
        # The coins have a seed of their own; the records do not, so that runs with other coins have the same canaries.
        self.records_m = keyed_random.generator("canary records").permutation(len(data))[: self.num_canaries]
        self.losses = losses
        self.planted = PlantedData(data, self.records_m, self.disguise(data))
        self.contributes = torch.from_numpy(np.append(self.coins_m, True))  # [m + 1]: ordinary records always do
        self.prepare(model)
        return self.planted, self.contributing_losses

    def contributing_losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """The objective's losses, [B], but those of canaries; 0 for canaries that are out."""
        numbers_B, inputs = _split(batch)
        per_example = self.losses(model, inputs, rng)
        loss_B = self.own_losses(numbers_B, per_example.loss)
        contributes_B = self.contributes.to(loss_B.device)[numbers_B]
        return replace(per_example, loss=loss_B.where(contributes_B, loss_B.new_zeros(())))

    def start(self) -> None:
        """Writes the coins; called before the first step, never after a resume."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / "coins.json", {"seed": self.seed, "is_in": self.coins_m.tolist()})

    def finish(self, model: nn.Module) -> None:
        """Writes the scores, which are computed without a look at the coins."""
        scores = self.scores(model)
        if self.folder is not None:
            content = {name: values.tolist() for name, values in scores.items()}
            files.write_json(self.folder / "scores.json", content)

    def disguise(self, data: TrainingData) -> Callable[[dict[str, Tensor], Tensor], None]:
        """What turns rows of a batch into canaries, in place, given their numbers [B]."""
        return lambda batch, numbers_B: None

    @abstractmethod
    def prepare(self, model: nn.Module) -> None:
        """What has to be done to, or known of, the model before training."""

    def own_losses(self, numbers_B: Tensor, loss_B: Tensor) -> Tensor:
        """`loss_B` of the objective with the canaries' own losses in it."""
        return loss_B

    def collect(self) -> None:  # noqa: B027 (scores from losses need nothing between the steps)
        """Called after each release, before anything else reads the gradient."""

    @abstractmethod
    def scores(self, model: nn.Module) -> dict[str, np.ndarray]:
        """`scores` [m], higher for canaries that are more likely in, and what else an analysis needs."""


class DiracCanaries(Canaries):
    """White box: the adversary chooses a gradient per canary and sees every noisy sum."""

    def __init__(self, settings: Any, folder: Path | None, clipping_norm: float) -> None:
        super().__init__(settings, folder)
        self.raw_norm = RAW_NORM * clipping_norm

    def prepare(self, model: nn.Module) -> None:
        """Gives the model one zero-initialised parameter per canary; ordinary records look up the padding row."""
        device = next(model.parameters()).device
        self.table = nn.Embedding(self.num_canaries + 1, 1, padding_idx=self.num_canaries, device=device)
        nn.init.zeros_(self.table.weight)
        model.add_module(MODULE, self.table)

    def own_losses(self, numbers_B: Tensor, loss_B: Tensor) -> Tensor:
        return torch.where(numbers_B < self.num_canaries, self.raw_norm * self.table(numbers_B).squeeze(-1), loss_B)

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the release to the table, in place of an optimizer's step: checkpoints then carry the scores."""
        weight = self.table.weight
        assert weight.grad is not None
        weight += weight.grad
        weight.grad = None

    def scores(self, model: nn.Module) -> dict[str, np.ndarray]:
        delattr(model, MODULE)
        return {"scores": self.table.weight.detach()[: self.num_canaries, 0].double().cpu().numpy()}


class RecordCanaries(Canaries):
    """Black box: the adversary plants records and sees their losses under the initial and the final model."""

    def __init__(self, settings: Any, folder: Path | None) -> None:
        super().__init__(settings, folder)
        self.kind = settings.canaries

    def disguise(self, data: TrainingData) -> Callable[[dict[str, Tensor], Tensor], None]:
        originals = data.batch(self.records_m)
        return _random_tokens(originals) if self.kind == "random_tokens" else _wrong_labels(originals)

    def prepare(self, model: nn.Module) -> None:
        self.initial_losses_m = self.losses_of_canaries(model)

    def scores(self, model: nn.Module) -> dict[str, np.ndarray]:
        final_m = self.losses_of_canaries(model)
        return {"scores": self.initial_losses_m - final_m, "final_losses": final_m}

    @torch.no_grad()
    def losses_of_canaries(self, model: nn.Module) -> np.ndarray:
        """Loss of every canary, in or out, [m], without dropout."""
        device = next(model.parameters()).device
        pieces = []
        with evaluation_mode(model):
            for start in range(0, self.num_canaries, SCORING_BATCH):
                records_B = self.records_m[start : start + SCORING_BATCH]
                batch = {name: tensor.to(device) for name, tensor in self.planted.batch(records_B).items()}
                loss_B = self.losses(model, _split(batch)[1], ExampleRandom(self.seed, 0, records_B)).loss
                pieces.append(loss_B.double().cpu().numpy())
        return np.concatenate(pieces)


class PlantedData:
    """A training set with canaries in place of `records_m`; its batches also hold NUMBER, int64 [B]."""

    def __init__(
        self, data: TrainingData, records_m: Indices, disguise: Callable[[dict[str, Tensor], Tensor], None]
    ) -> None:
        self.data = data
        self.disguise = disguise
        self.numbers_N = np.full(len(data), len(records_m), dtype=np.int64)
        self.numbers_N[records_m] = np.arange(len(records_m))

    @property
    def lengths(self) -> Indices | None:
        return self.data.lengths

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        batch = dict(self.data.batch(indices))
        batch[NUMBER] = torch.from_numpy(self.numbers_N[indices])
        self.disguise(batch, batch[NUMBER])
        return batch


def make_canaries(settings: Any, *, clipping_norm: float, folder: Path | None) -> Canaries | None:
    """The canaries that privacy.audit asks for; None for a run that is not audited."""
    if settings.canaries == "none":
        return None
    if settings.canaries == "dirac":
        return DiracCanaries(settings, folder, clipping_norm)
    return RecordCanaries(settings, folder)


def _split(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Canary numbers, and the batch as the objective knows it."""
    inputs = dict(batch)
    return inputs.pop(NUMBER), inputs


def _wrong_labels(originals: Batch) -> Callable[[dict[str, Tensor], Tensor], None]:
    labels_m = originals.get("labels")
    if labels_m is None or labels_m.ndim != 1 or labels_m.is_floating_point() or int(labels_m.max()) < 1:
        raise UsageError("privacy.audit.canaries=mislabel needs records of two or more classes; take dirac")
    num_classes = int(labels_m.max()) + 1
    shift_m = keyed_random.generator("canary labels").integers(1, num_classes, len(labels_m))
    wrong_m = (labels_m + torch.from_numpy(shift_m)) % num_classes

    def disguise(batch: dict[str, Tensor], numbers_B: Tensor) -> None:
        is_canary_B = numbers_B < len(wrong_m)
        batch["labels"] = torch.where(is_canary_B, wrong_m[numbers_B.clamp(max=len(wrong_m) - 1)], batch["labels"])

    return disguise


def _random_tokens(originals: Batch) -> Callable[[dict[str, Tensor], Tensor], None]:
    """Every token but the first and the last becomes a random one of those that the replaced records hold."""
    if "input_ids" not in originals:
        raise UsageError(
            "privacy.audit.canaries=random_tokens needs token ids, and this run trains on none (adapter=head trains on "
            "cached features); take mislabel or dirac"
        )
    ids_mT = originals["input_ids"]
    alphabet = ids_mT[_inner(originals)].unique()
    drawn = keyed_random.generator("canary tokens").integers(0, len(alphabet), tuple(ids_mT.shape))
    tokens_mT = alphabet[torch.from_numpy(drawn)]

    def disguise(batch: dict[str, Tensor], numbers_B: Tensor) -> None:
        rows_B = numbers_B < len(tokens_mT)
        ids_BT = batch["input_ids"]
        replaced_BT = _inner(batch) & rows_B[:, None]
        length = min(ids_BT.shape[1], tokens_mT.shape[1])
        random_BT = ids_BT.clone()
        random_BT[:, :length] = tokens_mT[numbers_B.clamp(max=len(tokens_mT) - 1), :length]
        labels = batch.get("labels")
        if labels is not None and labels.shape == ids_BT.shape:  # a language model predicts the canary's own tokens
            batch["labels"] = torch.where(replaced_BT & (labels != IGNORED_LABEL), random_BT, labels)
        batch["input_ids"] = torch.where(replaced_BT, random_BT, ids_BT)

    return disguise


def _inner(batch: Batch) -> Tensor:
    """Attended positions without the first and the last of each row, bool [B, T]."""
    attended_BT = batch["attention_mask"].bool()
    rank_BT = attended_BT.cumsum(dim=1)
    return attended_BT & (rank_BT > 1) & (rank_BT < rank_BT[:, -1:])
