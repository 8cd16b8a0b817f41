"""What is measured of the models of K clients: on their own lines, on those of the others, and on rare characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from privlm.job import Stage
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share, share_of_counts
from privlm.metrics.statistic import statistic
from privlm.results import Result

from .data import Clients
from .pictures import draw_matrix
from .scores import Scores, character_accuracy, few_shot, one_minus_ned

Texts = list[list[list[str]]]
"""[k][j][i]: what the model of client k reads of test line i of client j."""


@dataclass(frozen=True)
class Measured:
    """scores [k][j]: of the model of client k on the test lines of client j."""

    clients: Clients
    readings: Texts

    @classmethod
    def of_one(cls, clients: Clients, readings: list[list[str]]) -> Measured:
        """All clients have the same model. readings [j][i]."""
        return cls(clients, [readings] * len(clients))

    @cached_property
    def scores(self) -> list[list[Scores]]:
        """A model that several clients share is scored once."""
        known: dict[int, list[Scores]] = {}
        for of_model in self.readings:
            if id(of_model) not in known:
                known[id(of_model)] = [self._score(texts, j) for j, texts in enumerate(of_model)]
        return [known[id(of_model)] for of_model in self.readings]

    @property
    def is_shared(self) -> bool:
        """Whether all clients have one model."""
        return len({id(of_model) for of_model in self.readings}) == 1

    @property
    def matrix(self) -> np.ndarray:
        """Character accuracy [K, K], row k of the model of client k."""
        return np.array([[float(character_accuracy(s.edits, s.lengths)) for s in row] for row in self.scores])

    @property
    def own(self) -> list[Scores]:
        """Of each client's model on its own lines."""
        return [self.scores[k][k] for k in range(len(self.clients))]

    def cross_domain(self) -> dict[str, Estimate]:
        """On the lines of the others. A line is one unit, whose edits are a mean over the models that do not own it."""
        edits, similar, lengths = [], [], []
        for j in range(len(self.clients)):
            others = [self.scores[k][j] for k in range(len(self.clients)) if k != j]
            edits.append(np.mean([scores.edits for scores in others], axis=0))
            similar.append(np.mean([one_minus_ned(scores.edits, scores.longer) for scores in others], axis=0))
            lengths.append(others[0].lengths)
        characters = statistic(character_accuracy, np.concatenate(edits), np.concatenate(lengths))
        return {"cross_char": characters, "cross_ned": statistic(np.mean, np.concatenate(similar))}

    def few_shot(self, fewer_than: int) -> Estimate | None:
        """Share of the rare characters of the own test lines that are read; a line is a unit. None: there are none."""
        right, total = [], []
        for k, client in enumerate(self.clients.clients):
            seen = "".join(line.text for line in client.train)
            for line, text in zip(client.test, self.readings[k][k], strict=True):
                counted = few_shot([line.text], [text], seen, fewer_than)
                right.append(counted[0])
                total.append(counted[1])
        return share_of_counts(right, total) if sum(total) else None

    def _score(self, texts: list[str], client: int) -> Scores:
        return Scores.of(texts, [line.text for line in self.clients.clients[client].test])


def report(stage: Stage, measured: Measured, split: str, fewer_than: int) -> None:
    """Rows of one method. split: its name."""
    together = Scores.together(measured.own)
    found = {
        "own_char": together.character_accuracy(),
        "own_line": together.line_accuracy(),
        "own_ned": together.similarity(),
    }
    if len(measured.clients) > 1:
        found |= measured.cross_domain()
    rare = measured.few_shot(fewer_than)
    if rare is not None:
        found["few_shot_char"] = rare
    worst = min(measured.own, key=lambda scores: float(character_accuracy(scores.edits, scores.lengths)))
    found["worst_client_char"] = worst.character_accuracy()
    _report(stage, found, split)


def report_clients(stage: Stage, measured: Measured) -> None:
    """Of each client's model on its own lines."""
    for client, scores in zip(measured.clients.clients, measured.own, strict=True):
        accuracy = {"char": scores.character_accuracy(), "line": scores.line_accuracy(), "ned": scores.similarity()}
        _report(stage, accuracy, client.name)


def report_matrix(stage: Stage, measured: Measured, method: str) -> None:
    """Character accuracy of each client's model on each client's lines, as a picture and, where models differ, as rows
    of the split `express on bank`.
    """
    names = [client.name for client in measured.clients.clients]
    if not measured.is_shared:
        for k, j in np.ndindex(len(names), len(names)):
            stage.report(split=f"{names[k]} on {names[j]}", matrix_char=measured.scores[k][j].character_accuracy())
    stage.picture("cross_domain", draw_matrix(names, measured.matrix, f"character accuracy, {method}"))


def report_empty(stage: Stage, readings: Sequence[Sequence[str]], split: str) -> None:
    """Lines of which nothing was read."""
    empty = [not text for texts in readings for text in texts]
    stage.report(split=split, read_nothing=share(empty))


def _report(stage: Stage, found: Mapping[str, Estimate], split: str) -> None:
    for name, estimate in found.items():
        stage.report(Result.of(name, estimate, unit="fraction", split=split))
