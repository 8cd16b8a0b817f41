"""Padded batches of text lines, for the trainer and for reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .alphabet import BLANK, Alphabet
from .line import Line

EDGE = 2  # columns at the right end of a line whose median grey its padding has


class LineData:
    """Lines as a data set of the trainer.

    width: of every batch, in pixels: a line's row then never depends on its neighbours'. None: that of its widest line.
    """

    def __init__(self, lines: Sequence[Line], alphabet: Alphabet, width: int | None = None) -> None:
        self.lines = list(lines)
        self.alphabet = alphabet
        self.width = width
        self.lengths = np.array([line.width for line in self.lines], dtype=np.int64)
        self._classes = [alphabet.classes(line.text) for line in self.lines]

    def __len__(self) -> int:
        return len(self.lines)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """image float32 [B, 1, H, W] in [-1, 1], padded on the right with the grey of each line's edge; width int64
        [B]; text int64 [B, L], padded with blanks; num_symbols int64 [B].
        """
        lines, classes = [self.lines[i] for i in indices], [self._classes[i] for i in indices]
        height = self.lines[0].image.shape[0]
        width = self.width or max((line.width for line in lines), default=1)
        image = np.empty((len(lines), 1, height, width), dtype=np.float32)
        text = np.full((len(lines), max(map(len, classes), default=1)), BLANK, dtype=np.int64)
        for row, (line, symbols) in enumerate(zip(lines, classes, strict=True)):
            image[row, 0, :, : line.width] = line.image
            image[row, 0, :, line.width :] = np.median(line.image[:, -EDGE:])
            text[row, : len(symbols)] = symbols
        return {
            "image": torch.from_numpy(image / 127.5 - 1.0),
            "width": torch.tensor([line.width for line in lines], dtype=torch.int64),
            "text": torch.from_numpy(text),
            "num_symbols": torch.tensor([len(symbols) for symbols in classes], dtype=torch.int64),
        }
