"""answers.jsonl: what both parsers read in each answer, beside the truth. No text of prompts or answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privlm import files

from .suite import Grading, Reply

ANSWERS = "answers.jsonl"


def write_answers(path: Path, gradings: Sequence[Grading]) -> None:
    lines: list[dict[str, Any]] = []
    for grading in gradings:
        for swapped, replies in ((False, grading.replies), (True, grading.swapped)):
            lines += [_line(grading, reply, swapped) for reply in replies]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _line(grading: Grading, reply: Reply, swapped: bool) -> dict[str, Any]:
    return {
        "suite": grading.suite.name,
        "item": reply.item.id,
        "sample": reply.sample,
        "swapped": swapped,
        "status": reply.status,
        "finish_reason": reply.finish_reason,
        "truth": reply.question.truth,
        **{parser: grading.label(reply, parser) for parser in ("strict", "upstream")},
        "credit": grading.credit(reply),
    }
