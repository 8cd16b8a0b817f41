"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from privlm import files

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_content(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(tmp_path / "a.json", {"old": 1})
    files.write_directory(tmp_path / "step-1", lambda folder: (folder / "x").write_text("old") and None)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(tmp_path / "a.json", {"new": 2})
    with pytest.raises(OSError, match="No space"):
        files.write_directory(tmp_path / "step-2", lambda folder: (folder / "x").write_text("new") and None)
    monkeypatch.undo()
    assert files.read_json(tmp_path / "a.json") == {"old": 1}
    assert not (tmp_path / "step-2").exists()
    files.write_directory(tmp_path / "step-2", lambda folder: (folder / "y").write_text("again") and None)
    assert [path.name for path in (tmp_path / "step-2").iterdir()] == ["y"]


def test_broken_line_in_the_middle_is_an_error_and_a_torn_last_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(ValueError, match="Expecting"):
        files.read_json_lines(path)
