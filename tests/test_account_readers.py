"""Whoever reads a run holds its ledger against what its files have recorded: show, compare, tables, the page, the
audit, the accountant, and the run that goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.regression import Points, Squares, settings
from support.runs import only_run, tiny_run
from support.zygote import Zygote
from torch import nn

from privlm.cli import accountant, audit, compare, show
from privlm.config import defaults
from privlm.errors import UsageError
from privlm.fit import fit
from privlm.job import Stage
from privlm.models.loaded import Loaded
from privlm.privacy.run_account import LEDGER, read_account
from privlm.privacy.schema import PrivacyConfig
from privlm.report.page import write_report
from privlm.report.store import read_run

CONFIG = settings(steps=4, epochs=None, checkpoint_every=2)
PRIVACY = defaults(PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, delta=1e-3)


def trained(folder: Path) -> Path:
    with Stage.at(folder, trainer=CONFIG, privacy=PRIVACY) as stage:
        fit(stage, Loaded.of(lambda: nn.Linear(3, 1), made_of="linear"), Squares(), Points())
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "show": lambda run: show.main([str(run)]),
    "show --json": lambda run: show.main([str(run), "--json"]),
    "compare": lambda run: compare.main([str(run), str(run.parent / "other")]),
    "audit": lambda run: audit.main([str(run)]),
    "accountant ledger": lambda run: accountant.main(["ledger", str(run)]),
    "page": write_report,
    "run": trained,
}

DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "emptied": (lambda ledger: ledger.write_text(""), "holds 0 releases, and .* has recorded"),
    "cut": (lambda ledger: change(ledger, lambda lines: lines[:3]), "holds 3 releases, and .* has recorded 4"),
    "edited": (
        lambda ledger: change(ledger, lambda lines: [line.replace("1.0", "9.0", 1) for line in lines]),
        "line 1 is not what was written",
    ),
    "last line edited": (
        lambda ledger: change(ledger, lambda lines: [*lines[:3], lines[3].replace("1.0", "9.0", 1)]),
        "line 4 is not what was written",
    ),
    "removed": (lambda ledger: ledger.unlink(), "is missing, and .* has recorded its releases"),
    "added to": (
        lambda ledger: change(ledger, lambda lines: [*lines, lines[3]]), "line 5 does not follow the line before it"
    ),
    "without digests": (
        lambda ledger: change(ledger, lambda lines: [without_digests(line) for line in lines]),
        "line .* is not the release that .* has recorded|older version",
    ),
}  # fmt: skip


def change(ledger: Path, changed: Callable[[list[str]], list[str]]) -> None:
    ledger.write_text("".join(changed(ledger.read_text().splitlines(keepends=True))))


def without_digests(line: str) -> str:
    fields = json.loads(line)
    for name in ("schema", "sums", "before", "digest"):
        del fields[name]
    return json.dumps(fields) + "\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with another beside it."""
    for name in ("run", "other"):
        for path in finished.rglob("*"):
            if path.is_file():
                copy = tmp_path / name / path.relative_to(finished)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    return tmp_path / "run"


def test_what_keeps_a_head_is_known(run: Path) -> None:
    """Each file that a private run writes after a release can tell of a ledger that was cut."""
    for name in ("result.json", "privacy.json", "stages/train/model/training.json"):
        assert json.loads((run / name).read_text())["ledger"]["releases"] == 4
    progress = json.loads((run / "checkpoints/train/step-2/progress.json").read_text())["progress"]
    assert progress["ledger"]["releases"] == 2
    change(run / LEDGER, lambda lines: lines[:1])
    for name in ("result.json", "privacy.json", "stages/train/model/training.json"):
        with pytest.raises(UsageError, match=f"holds 1 releases, and {name}"):
            read_account(run)
        (run / name).unlink()
    with pytest.raises(UsageError, match="holds 1 releases, and checkpoints/train/step-2"):
        read_account(run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_ledger_that_does_not_add_up_is_refused_by_every_reader(
    damage: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, says = DAMAGES[damage]
    break_it(run / LEDGER)
    for name, read in READERS.items():
        with pytest.raises(UsageError, match=says) as refusal:
            read(run)
        assert LEDGER in str(refusal.value), name
        assert "restore the file from a copy, or start again with --force" in str(refusal.value), name
    assert capsys.readouterr().out == ""
    record = read_run(run)
    assert not record.finished  # fills no cell of a table
    assert any(LEDGER in problem for problem in record.problems)
    assert "--force" in record.problems[-1]


def test_a_price_that_the_ledger_does_not_bear_out_is_refused(run: Path) -> None:
    privacy = json.loads((run / "privacy.json").read_text())
    privacy["certificate"]["segments"][0]["steps"] = 3
    (run / "privacy.json").write_text(json.dumps(privacy))
    with pytest.raises(UsageError, match=r"its 4 releases are not the 3 whose price privacy\.json tells"):
        show.main([str(run)])
    (run / "privacy.json").write_text('{"mechanism": "none"}')
    with pytest.raises(UsageError, match=r"holds 4 releases, and privacy\.json tells no price of them"):
        show.main([str(run)])


def test_a_run_of_an_older_version_is_shown_as_such_and_not_gone_on_with(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run / LEDGER, lambda lines: [without_digests(line) for line in lines])
    for name in ("result.json", "privacy.json"):
        content = json.loads((run / name).read_text())
        for later in ("ledger", "final", "sha256", "files"):
            content.pop(later, None)
        (run / name).write_text(json.dumps(content))
    (run / "stages/train/model/training.json").unlink()
    for step in (2, 4):
        (run / f"checkpoints/train/step-{step}/digests.json").unlink()
    assert show.main([str(run)]) == 0
    shown = capsys.readouterr().out
    assert "guarantee: (" in shown
    assert "4 releases, of an older version: without digests" in shown
    assert accountant.main(["ledger", str(run)]) == 0
    assert "of an older version" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"older version, whose lines hold no digests.*--force"):
        trained(run)
    change(run / LEDGER, lambda lines: lines[:3])
    with pytest.raises(UsageError, match="its 3 releases are not the 4"):
        show.main([str(run)])


@pytest.mark.medium
def test_force_keeps_the_accounts_and_tells_what_all_have_cost(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, "adapter=head", "trainer.evaluate_every=0")
    assert zygote.run(*words).status == 0
    run = only_run(tmp_path)
    first = (run / LEDGER).read_bytes()
    (run / LEDGER).write_bytes(first.replace(b'"noise_multiplier": 1.0', b'"noise_multiplier": 9.0'))
    again = zygote.run(*words)
    assert again.status == 2
    assert "line 1 is not what was written" in again.output
    (run / LEDGER).write_bytes(first)
    forced = zygote.run(*words, "--force")
    assert forced.status == 0, forced.output
    assert "kept the account of the removed run: privacy_ledger.1.jsonl" in forced.output
    assert (run / "privacy_ledger.1.jsonl").read_bytes() == first
    told = json.loads((run / "privacy.json").read_text())
    assert told["with_forced"]["releases"] == 12
    assert told["with_forced"]["epsilon"] > told["epsilon"]
    assert "with what --force removed: ε " in forced.output
    kept = run / "privacy_ledger.1.jsonl"
    kept.write_bytes(first[:-200])
    third = zygote.run(*words, "--force")
    assert third.status == 0, third.output
    assert "with what --force removed: unknown: " in third.output
    assert (run / "privacy_ledger.2.jsonl").exists()
