"""Doubtful labels, and what is measured of the models of several clients."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from privlm.runners.pfedcr.ctc import Readings
from privlm.runners.pfedcr.data import Client, Clients
from privlm.runners.pfedcr.label_errors import doubts, precision_and_recall, write_doubts
from privlm.runners.pfedcr.line import Line
from privlm.runners.pfedcr.measure import Measured
from support.lines import ALPHABET

IMAGE = np.zeros((24, 40), np.uint8)


def lines(*texts: str, truth: str | None = None) -> list[Line]:
    return [Line(IMAGE, text, f"line {number}", truth) for number, text in enumerate(texts)]


def test_a_label_is_doubtful_where_all_models_surely_read_the_same_other_text() -> None:
    labelled = lines("ab", "ab", "ab", "ab")
    own = Readings(["ab", "ac", "ac", "ac"], [0.99, 0.99, 0.99, 0.5], 0.5)
    shared = Readings(["ab", "ac", "ad", "ac"], [0.99, 0.95, 0.99, 0.99], 0.5)
    found = doubts(labelled, [own, shared], 0.9)
    assert [(doubt.line.where, doubt.reading, doubt.confidence) for doubt in found] == [("line 1", "ac", 0.95)]
    assert [doubt.line.where for doubt in doubts(labelled, [own], 0.9)] == ["line 1", "line 2"]


def test_precision_and_recall_are_of_planted_labels() -> None:
    labelled = [*lines("ab", "ab", truth="ac"), Line(IMAGE, "de", "line 2")]
    found = doubts(labelled, [Readings(["ac", "ab", "df"], [1.0] * 3, 0.5)], 0.9)
    measured = precision_and_recall(labelled, found)
    assert (measured["label_error_precision"].value, measured["label_error_recall"].value) == (0.5, 0.5)
    assert precision_and_recall(labelled[2:], []) == {}


def test_the_table_of_doubts_can_hold_any_text(tmp_path: Path) -> None:
    path = tmp_path / "clients" / "bank" / "label_errors.csv"
    write_doubts(path, doubts(lines('a,"b'), [Readings(["京\n"], [0.95], 0.5)], 0.9))
    (row,) = csv.DictReader(path.open(newline="", encoding="utf-8"))
    assert row == {"line": "line 0", "label": 'a,"b', "reading": "京\n", "confidence": "0.9500"}


def two_clients() -> Clients:
    return Clients(ALPHABET, [Client("x", lines("aaab"), lines("ab", "cd")), Client("y", lines("cd"), lines("ef"))])


def test_own_and_cross_domain_are_of_the_right_models() -> None:
    """The model of x reads all of its own lines and nothing of y's; that of y reads one character of each."""
    of_x, of_y = [["ab", "cd"], [""]], [["a", "c"], ["e"]]
    measured = Measured(two_clients(), [of_x, of_y])
    assert measured.matrix.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert [scores.edits.tolist() for scores in measured.own] == [[0, 0], [1]]
    assert measured.cross_domain()["cross_char"].value == pytest.approx(1 - (1 + 1 + 2) / 6)
    assert not measured.is_shared


def test_a_shared_model_is_scored_once_and_is_everybodys() -> None:
    measured = Measured.of_one(two_clients(), [["ab", "cd"], [""]])
    assert measured.is_shared
    assert measured.matrix.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert measured.scores[0] is measured.scores[1]


def test_rare_characters_are_counted_by_what_each_client_has_seen() -> None:
    measured = Measured.of_one(two_clients(), [["ab", "c"], ["e"]])
    rare = measured.few_shot(fewer_than=2)  # of x: b once, c and d never; of y: e and f never
    assert rare is not None
    assert rare.value == pytest.approx((1 + 1 + 1) / 5)
    assert measured.few_shot(fewer_than=0) is None
