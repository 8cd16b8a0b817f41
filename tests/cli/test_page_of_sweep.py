"""When the page of a sweep is written, and what becomes of it where it cannot be."""

import json
import re

import pytest

from privlm import files
from privlm.cli import main
from privlm.sweeps import conduct
from privlm.sweeps.folder import Member, Sweep
from privlm.sweeps.schema import SweepConfig
from privlm.sweeps.standing import standings, write_page

pytestmark = pytest.mark.torch_free


@pytest.fixture
def sweep(tmp_path, make_run):
    """Of three runs below tmp_path/runs: two are done, one has failed."""
    members = []
    for seed, state in enumerate(("done", "done", "failed")):
        changes = {"reason": "out of memory"} if state == "failed" else {}
        path = make_run(tmp_path / "runs", seed=seed, state=state, status=changes)
        members.append(Member(path, ("task=ewtune", f"seed={seed}"), f"{seed}" * 64))
    made = Sweep(
        tmp_path / "runs" / "sweeps" / "ewtune-seed-0", "privlm sweep seed=0,1,2", members, SweepConfig(1, False, False)
    )
    made.write()
    return made


def full(*_):
    raise OSError(28, "No space left on device")


def test_status_writes_the_page_and_tells_where_it_is(sweep, tmp_path, capsys):
    assert main(["status", "ewtune", "--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"page  {sweep.folder / 'sweep.html'}"
    page = (sweep.folder / "sweep.html").read_text(encoding="utf-8")
    assert "<h1>ewtune-seed-0</h1>" in page
    assert "<code>privlm sweep seed=0,1,2</code>" in page
    assert "2 of 3 done" in page
    assert "out of memory" in page
    assert re.findall(r'<td class="value[^"]*" title="([^"]*)">', page) == ["0", "1", "2"]  # the swept word alone
    for member in sweep.members:
        assert f'<a href="../../ewtune/{member.name}/">' in page


def test_for_machines_and_of_all_sweeps_no_page_is_written(sweep, tmp_path, capsys):
    assert main(["status", "ewtune", "--json", "--runs", str(tmp_path / "runs")]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3
    assert main(["status", "--runs", str(tmp_path / "runs")]) == 0
    assert not (sweep.folder / "sweep.html").exists()


def test_a_page_that_cannot_be_written_is_told_and_changes_no_status(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "write_text", full)
    assert main(["status", "ewtune", "--runs", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert "page" not in out
    assert f"cannot write {sweep.folder / 'sweep.html'}: No space left on device" in err


@pytest.mark.parametrize("can_write", [True, False])
def test_a_sweep_ends_with_its_page_and_the_status_of_its_runs(sweep, tmp_path, capsys, monkeypatch, can_write):
    monkeypatch.setattr(conduct, "conduct", standings)
    if not can_write:
        monkeypatch.setattr("privlm.sweeps.standing.files.write_text", full)
        monkeypatch.setattr(Sweep, "write", lambda self: None)
    assert main(["sweep", "--resume", str(sweep.folder)]) == 1  # one run has failed
    out, err = capsys.readouterr()
    assert "accuracy" in out
    assert (f"page  {sweep.folder / 'sweep.html'}" in err) == can_write
    assert ("No space left on device" in err) != can_write


def test_a_dry_run_writes_no_page(tmp_path):
    assert main(["sweep", "task=ewtune", "model=tiny", "seed=0,1", f"runs={tmp_path}", "--dry-run"]) == 0
    assert not list(tmp_path.rglob("sweep.html"))


def test_the_page_is_written_whole_or_not_at_all(sweep, monkeypatch):
    path = write_page(sweep, standings(sweep))
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr(files.os, "fsync", full)
    assert write_page(sweep, standings(sweep)) is None
    assert path.read_text(encoding="utf-8") == before
