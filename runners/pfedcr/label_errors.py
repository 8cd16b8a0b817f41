"""Lines whose label is doubtful: all models of a client read the same, surely, and another text than the label."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privlm import files
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share

from .ctc import Readings
from .line import Line

FIELDS = ("line", "label", "reading", "confidence")


@dataclass(frozen=True)
class Doubt:
    """A line and what is read in place of its label. confidence: of the least certain model."""

    line: Line
    reading: str
    confidence: float

    @property
    def is_planted(self) -> bool:
        """Whether the label was made wrong on purpose."""
        return self.line.truth is not None


def doubts(lines: Sequence[Line], readings: Sequence[Readings], confidence: float) -> list[Doubt]:
    """readings: of the client's models (its own, the global one), of these lines; a central arm has one."""
    found = []
    for number, line in enumerate(lines):
        texts = {reading.texts[number] for reading in readings}
        sure = min(reading.confidences[number] for reading in readings)
        if len(texts) == 1 and sure >= confidence and texts != {line.text}:
            found.append(Doubt(line, texts.pop(), sure))
    return found


def write_doubts(path: Path, found: Sequence[Doubt]) -> None:
    """A table with labels and readings in plain text: it belongs to the client and stays there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows((doubt.line.where, doubt.line.text, doubt.reading, f"{doubt.confidence:.4f}") for doubt in found)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text.getvalue())


def precision_and_recall(lines: Sequence[Line], found: Sequence[Doubt]) -> dict[str, Estimate]:
    """Of the planted wrong labels among `lines`; without a doubt there is no precision."""
    named = {doubt.line.where for doubt in found}
    planted = [line.where in named for line in lines if line.truth is not None]
    measured = {"label_error_recall": share(planted)} if planted else {}
    return measured | ({"label_error_precision": share([doubt.is_planted for doubt in found])} if found else {})
