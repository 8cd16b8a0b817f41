"""Answers to items, kept as JSON lines: each is on disk as soon as it comes, and only open items are asked again.

Each line is sealed; an item whose line the disk has damaged is open again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from privlm import files

logger = logging.getLogger("privlm")

Item = TypeVar("Item")
Row = dict[str, Any]
Keep = Callable[[str, Mapping[str, Any]], None]
"""keep(item, fields): keeps the answer to one item."""
Answer = Callable[[Mapping[str, Item], Keep], None]
"""answer(open, keep): works on the open items and keeps each, in any order; one that it keeps nothing of stays open."""


def answered(file: Path, items: Mapping[str, Any]) -> dict[str, Row]:
    """item -> its line {"item": id, **fields}, in the order of `items`, of those that have one."""
    damaged: list[int] = []
    found = {line["item"]: line for line in files.read_json_lines(file, left_out=damaged)}
    if damaged:
        logger.warning("%s: damaged lines are left out: %s", file, ", ".join(map(str, damaged)))
    return {item: found[item] for item in items if item in found}


def answer_open(file: Path, items: Mapping[str, Item], answer: Answer[Item], tick: Callable[[int], None]) -> None:
    """Has the items answered that no line of `file` answers yet. tick: told how many have an answer, after each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.cut_torn_line(file)
    done = set(answered(file, items))

    def keep(item: str, fields: Mapping[str, Any]) -> None:
        files.append_durably(file, [files.sealed({"item": item, **fields})])
        done.add(item)
        tick(len(done))

    if len(done) < len(items):
        answer({name: item for name, item in items.items() if name not in done}, keep)
