"""The trained recogniser of a run at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from privlm.config import Config, is_private
from privlm.errors import PrivLMError, UsageError
from privlm.fit import load_trained
from privlm.metrics.estimate import Estimate
from privlm.models.loaded import Loaded
from privlm.predictor import Row
from privlm.rundir import MODEL

from .admission import grey
from .ctc import READ_TOGETHER, read
from .data import admission, load
from .line import Line
from .line_data import LineData
from .recogniser import Recogniser, load_recogniser, with_fused_lstm
from .scores import Scores

PROGRAM, ABOUT = "recogniser.pt2", "recogniser.json"
FRAMES_TOLD = {"crnn_small": "(width + 1) // 2", "crnn": "width // 4 - 1"}
"""What privlm's frames.py computes, in words for readers of an exported model."""

TOLERANCE = 1e-4  # of log-probabilities


def predictor(config: Config, folder: Path) -> Reader:
    """The model of the finished run in `folder`. Raises UsageError where its files are absent or have changed."""
    alphabet = load(config).alphabet
    loaded = load_recogniser(config.model, alphabet, config.seed, unrolled=is_private(config))
    load_trained(loaded, folder / "stages" / "train" / MODEL)
    return Reader(config, loaded)


class Reader:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, loaded: Loaded) -> None:
        assert isinstance(loaded.model, Recogniser)
        self.config = config
        self.model = loaded.model
        self.alphabet = loaded.tokenizer

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """text, and confidence: the probability of its least certain character.

        Raises UsageError for a row without the column image (a file), and for one that is no line.
        """
        batch: list[Line] = []
        for number, row in enumerate(rows, start=1):
            batch.append(self._line(row, number))
            if len(batch) == READ_TOGETHER:
                yield from self._answers(batch)
                batch = []
        if batch:
            yield from self._answers(batch)

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """The run's metrics on the test lines of each client of other lines with the same alphabet."""
        clients = load(SimpleNamespace(data=data, model=self.config.model))
        if clients.alphabet != self.alphabet:
            raise UsageError("data.alphabet: these lines have another alphabet than the model of the run")
        found = {}
        for client in clients.clients:
            texts = read(self.model, LineData(client.test, self.alphabet)).texts
            scores = Scores.of(texts, [line.text for line in client.test])
            found[client.name] = {
                "char": scores.character_accuracy(),
                "line": scores.line_accuracy(),
                "ned": scores.similarity(),
            }
        return found

    def export(self, folder: Path) -> None:
        """Writes `recogniser.pt2`, a program that torch.export.load reads without PrivLM, for any number of lines
        padded to model.max_width; and `recogniser.json`: alphabet, and how a line is fed and read.

        Raises PrivLMError where what was written does not compute what was trained.
        """
        config = self.config.model
        model = with_fused_lstm(self.model.eval().cpu())
        sample = torch.linspace(-1, 1, 3 * config.height * config.max_width).reshape(3, 1, config.height, -1)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of torch's LSTM, about its own weights
            program = torch.export.export(model, (sample,), dynamic_shapes=({0: torch.export.Dim("lines")},))
        torch.export.save(program, folder / PROGRAM)
        told = {
            "alphabet": self.alphabet.symbols,
            "input": f"float32 [lines, 1, {config.height}, {config.max_width}], grey / 127.5 - 1, padded on the right "
            "with the grey of the line's edge",
            "output": "log-probabilities [lines, frames, 1 + characters]; class 0 is the blank, class i character i",
            "frames_of_a_line": FRAMES_TOLD[config.family],
        }
        (folder / ABOUT).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        again = torch.export.load(folder / PROGRAM).module()
        with torch.no_grad():
            apart = float((again(sample[:2]) - self.model(sample[:2])).abs().max())
        if not apart <= TOLERANCE:
            raise PrivLMError(f"{folder}: the exported model is not the trained one: {apart:.3g} apart")

    def _line(self, row: Row, number: int) -> Line:
        name = row.get("image")
        if not isinstance(name, str):
            raise UsageError(f"row {number}: no file in column 'image'; the columns are {', '.join(row)}")
        path = Path(name).expanduser()
        image = grey(path.read_bytes()) if path.is_file() else None
        if image is None:
            raise UsageError(f"row {number}: {name} is no image that can be read")
        rules = admission(self.config, self.alphabet)
        line = rules.sized(image, "", f"row {number}")
        if line is None:
            raise UsageError(f"row {number}: {name} is no line: {', '.join(rules.refused)}")
        return line

    def _answers(self, lines: list[Line]) -> Iterator[Row]:
        readings = read(self.model, LineData(lines, self.alphabet))
        for text, confidence in zip(readings.texts, readings.confidences, strict=True):
            yield {"text": text, "confidence": float(np.round(confidence, 6))}
