"""Commands and files of a guide page, as its reader would type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

SWEEPS = Path(__file__).resolve().parents[2] / "docs" / "sweeps.md"


def blocks(mark: str) -> list[tuple[str, str]]:
    """(what follows `mark` in the comment, the indented lines below it), of each such block of the page."""
    found = re.findall(rf"<!-- {mark}(.*?) -->\n((?:    .*\n|\n(?=    ))+)", SWEEPS.read_text(encoding="utf-8"))
    return [(rest.strip(), re.sub(r"^    ", "", block, flags=re.MULTILINE)) for rest, block in found]


def commands(mark: str) -> list[list[str]]:
    """The words after `privlm` of each command below a comment that is `mark`, no more."""
    lines = [line for rest, block in blocks(mark) if not rest for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("privlm ")]
