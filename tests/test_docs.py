"""The commands of docs/sweeps.md, run in their order, as a reader would."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.pages import blocks, commands


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
