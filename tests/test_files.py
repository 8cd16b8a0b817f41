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


def test_every_changed_byte_of_a_json_object_is_refused_by_name_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    content = {"state": "done", "seconds": 1.25, "of": [1, None, True], "nan": float("nan"), "text": "é"}
    files.write_json(path, content)
    read = files.read_json(path)
    assert read == content | {"nan": "nan"}
    written = path.read_bytes()
    for place in range(len(written)):
        for bit in (1, 4, 32, 128):
            path.write_bytes(written[:place] + bytes([written[place] ^ bit]) + written[place + 1 :])
            again = files.read_intact_json(path)
            assert again in (None, read) or b'"sha256"' not in path.read_bytes()
    for cut in (b"", written[:40], b"\0" * 300):
        path.write_bytes(cut)
        with pytest.raises(files.DamagedFileError, match="restore it from a copy, or make the run again with --force"):
            files.read_json(path)
        assert files.read_intact_json(path) is None


def test_object_of_an_older_version_is_read_without_a_digest(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"state": "done"}')
    assert files.read_json(tmp_path / "old.json") == {"state": "done"}


def test_files_of_a_folder_are_known_by_their_digests(tmp_path: Path) -> None:
    files.write_directory(tmp_path / "step-1", _fill)
    folder = tmp_path / "step-1"
    assert files.damaged_files(folder) == []
    (folder / "sub" / "b").write_text("other")
    (folder / "c").write_text("new")
    (folder / "a").unlink()
    assert files.damaged_files(folder) == ["a", "c", "sub/b"]


def _fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a").write_text("a")
    (folder / "sub" / "b").write_text("b")
    files.write_digests(folder)


def test_broken_line_in_the_middle_is_an_error_and_a_torn_last_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(ValueError, match="Expecting"):
        files.read_json_lines(path)
