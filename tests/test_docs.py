"""The commands of docs/sweeps.md, run in their order, as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sweeps.md"


def blocks(mark: str) -> list[tuple[str, str]]:
    """(what follows `mark` in the comment, the indented lines below it), of each such block of the page."""
    found = re.findall(rf"<!-- {mark}(.*?) -->\n((?:    .*\n|\n(?=    ))+)", PAGE.read_text(encoding="utf-8"))
    return [(rest.strip(), re.sub(r"^    ", "", block, flags=re.MULTILINE)) for rest, block in found]


def commands(mark: str) -> list[list[str]]:
    lines = [line for rest, block in blocks(mark) if not rest for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("privlm ")]


@pytest.mark.medium
def test_every_command_for_this_machine_does_what_the_page_says(tmp_path):
    for rest, content in blocks("file"):
        (tmp_path / rest).parent.mkdir()
        (tmp_path / rest).write_text(content)
    words = commands("run")
    assert len(words) >= 12
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for command in words:
        done = subprocess.run(
            [sys.executable, "-m", "privlm", *command], cwd=tmp_path, env=environ, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
