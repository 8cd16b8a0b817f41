"""Prints what accountants answer: one in lines, several in a table, either as JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from privlm.report.render import console, print_table
from privlm.report.table import Table


def print_answers(
    options: argparse.Namespace, answers: Sequence[dict[str, Any]], notes: Sequence[str], columns: Sequence[str]
) -> None:
    """columns: the keys of the answers that were asked for, besides what every answer has."""
    for answer in answers:
        answer["notes"] += notes
    if options.json:
        print(json.dumps(answers if options.all else answers[0], indent=2, allow_nan=False))
    elif options.all:
        _print_table(answers, columns)
    else:
        _print_one(answers[0], columns)


def _print_one(answer: dict[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        print(f"{column.replace('_', ' ')} {number_text(answer[column])}")
    print(f"{_status(answer)} ({_name(answer)}, {answer['version']})")
    if answer.get("certified_pld") is not None:
        print(f"certified by pld: epsilon {number_text(answer['certified_pld'])}")
    if "eeai_upper" in answer:
        lower, upper = math.floor(answer["eeai_lower"] * 1e4) / 1e4, number_text(answer["eeai_upper"])
        print(f"rigorous Edgeworth interval (EEAI): epsilon in [{lower:.4f}, {upper}]")
    print(_setting(answer))
    for note in answer["notes"]:
        print(f"note: {note}")


def _print_table(answers: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Beside what each accountant says: the epsilon that is certified for the same noise."""
    rows = []
    for answer in answers:
        certified = answer["epsilon"] if answer["guarantee"] else answer.get("certified_pld")
        numbers = [number_text(value) for value in (*(answer[column] for column in columns), certified)]
        rows.append([_name(answer), *numbers, _status(answer)])
    headings = ["accountant", *(column.replace("_", " ") for column in columns), "certified epsilon", "status"]
    notes = [_setting(answers[0]), *dict.fromkeys(note for answer in answers for note in answer["notes"])]
    print_table(Table("accountants", "Accountants side by side", headings, rows, notes), console())


def _setting(answer: dict[str, Any]) -> str:
    [segment] = answer["segments"]
    return (
        f"sampling rate {segment['sampling_rate']:.6g}, {segment['steps']} steps, delta {answer['delta']:.6g}, "
        f"adjacency {answer['adjacency']}, direction {answer['direction']}"
    )


def _name(answer: dict[str, Any]) -> str:
    return answer["accountant"] if answer["order"] is None else f"edgeworth order {answer['order']}"


def _status(answer: dict[str, Any]) -> str:
    return "certified" if answer["guarantee"] else "not a guarantee"


def number_text(value: float | str | None) -> str:
    """A whole number as it is, others with four decimals, upwards: what is printed never promises too much privacy."""
    if value is None:
        return "none"
    if isinstance(value, str | int):
        return str(value)
    return f"{math.ceil(value * 1e4) / 1e4:.4f}"
