"""Connectionist temporal classification (Graves et al., ICML 2006): the loss of a line, and what is read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import nn

from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample

from .alphabet import BLANK
from .line_data import LineData
from .recogniser import Recogniser

READ_TOGETHER = 64
"""Lines of like width that are read together; no setting, since padding has a little part in what is read."""

BLANK_PLATEAU = 0.99
"""Share of blank frames beyond which a recogniser has learned the label prior and nothing of the pictures."""


class CTC(Objective):
    """The negative log-probability of each line's text, divided by its length. Without privacy a batch may couple its
    lines by BatchNorm and padding; under privacy neither is there (norm=group, batches of one width).
    """

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """float32 [B]; draws nothing from `rng`. Lines with fewer frames than their text needs do not come so far."""
        log_probabilities_TBA = model(batch["image"]).float().transpose(0, 1)
        assert isinstance(model, Recogniser)
        frames = model.num_frames(batch["width"])
        loss = nn.functional.ctc_loss(
            log_probabilities_TBA, batch["text"], frames, batch["num_symbols"], blank=BLANK, reduction="none"
        )
        return PerExample(loss / batch["num_symbols"])


@dataclass(frozen=True)
class Readings:
    """What a recogniser reads of N lines. texts: greedy. confidences: of each the probability of its least certain
    character (of the blanks, where it has none). blank_share: of all frames.
    """

    texts: list[str]
    confidences: list[float]
    blank_share: float

    @property
    def is_plateau(self) -> bool:
        """CTC's plateau: nearly all frames are blank, or all lines are read alike."""
        return self.blank_share > BLANK_PLATEAU or (len(self.texts) > 1 and len(set(self.texts)) == 1)


def collapsed(path: Sequence[int]) -> list[int]:
    """The classes that a path of frames stands for: repeats are one, then blanks go."""
    return [number for number, _ in groupby(path) if number != BLANK]


@torch.inference_mode()
def read(model: Recogniser, data: LineData) -> Readings:
    """In evaluation mode; the answer to a line depends on the others of `data` by their width alone."""
    device = next(model.parameters()).device
    order = np.argsort(data.lengths, kind="stable")
    texts, confidences = [""] * len(data), [0.0] * len(data)
    num_blank = num_frames = 0
    with evaluation_mode(model):
        for start in range(0, len(order), READ_TOGETHER):
            indices = order[start : start + READ_TOGETHER]
            batch = data.batch(indices)
            best, classes = model(batch["image"].to(device)).float().cpu().max(-1)
            frames = model.num_frames(batch["width"])
            for row, line in enumerate(indices):
                path = classes[row, : frames[row]].numpy()
                certain = best[row, : frames[row]].exp().numpy()
                texts[line] = data.alphabet.text(collapsed(path.tolist()))
                confidences[line] = _least_certain(path, certain)
                num_blank += int((path == BLANK).sum())
                num_frames += len(path)
    return Readings(texts, confidences, num_blank / max(1, num_frames))


def _least_certain(path: np.ndarray, certain: np.ndarray) -> float:
    """Of each character the frame that is most certain of it counts."""
    runs = np.split(certain, np.flatnonzero(np.diff(path)) + 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(path)) + 1])
    of_symbols = [float(run.max()) for run, start in zip(runs, starts, strict=True) if path[start] != BLANK]
    return min(of_symbols) if of_symbols else float(certain.min())
