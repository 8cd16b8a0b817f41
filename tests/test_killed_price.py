"""What is told of a private run that was killed or stopped: at every moment what its ledger holds, and no more."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import forked
from support.runs import only_run, tiny_run

from privlm.cli import accountant, accountant_options, show
from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment
from privlm.report.card import rounded_up
from privlm.report.page import REPORT, write_report

pytestmark = pytest.mark.medium

LONG = ("trainer.steps=20000", "trainer.evaluate_every=0", "trainer.log_every=0", "trainer.checkpoint_every=50")
DELTA = 1e-3


def price_of(ledger: Path) -> tuple[int, float]:
    """Distinct releases of a ledger, and what they cost, from the file as it lies."""
    lines = [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]] if ledger.exists() else []
    kinds = Counter({line["noise_id"]: (line["sampling_rate"], line["noise_multiplier"]) for line in lines}.values())
    return kinds.total(), accounting.epsilon([Segment(*kind, steps) for kind, steps in kinds.items()], DELTA).epsilon


def asked(capsys: pytest.CaptureFixture[str], main: Any, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def check_what_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Holds every place that tells of the privacy of a run against its ledger; what was told, in a line."""
    releases, truth = price_of(run / "privacy_ledger.jsonl")
    told = json.loads(asked(capsys, show.main, str(run), "--json"))["privacy"]
    text = asked(capsys, show.main, str(run))
    pages = [write_report(run).read_text()]
    on_disk = json.loads((run / "privacy.json").read_text())
    assert told["guarantee"] is False
    assert "guarantee: (" not in text
    assert not on_disk.get("guarantee", False)
    if not releases:
        assert "nothing has been released yet" in text
        assert "nothing has been released yet" in pages[0]
        with pytest.raises(UsageError, match=r"no ledger|nothing has been released"):
            accountant.main(["ledger", str(run), "--delta", str(DELTA), "--adjacency", "add_remove"])
        return "nothing released"
    composed = json.loads(asked(capsys, accountant.main, "ledger", str(run), "--json"))["composed"]
    assert told["epsilon"] == told["spent"]["epsilon"] == composed["epsilon"]["pld"] == pytest.approx(truth, abs=1e-9)
    assert told["spent"]["releases"] == releases
    assert told["planned_steps"] == 20000
    assert told["planned_epsilon"] > truth
    for page in (text, *pages):
        assert f"spent so far: ε {rounded_up(truth)} at δ 0.001, certified by pld, by {releases:,} releases" in page
        assert rounded_up(told["planned_epsilon"]) in page
    assert on_disk["spent"]["releases"] <= releases
    assert on_disk["spent"]["epsilon"] <= truth + 0.01
    return f"{releases} releases, ε {truth:.4f}; privacy.json as of {on_disk['spent']['releases']}"


def killed_at_moments(
    number: int, seed: int, messages: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """One run, with fresh noise after each kill, stopped and taken up again `number` times."""
    rng, runs, told = random.Random(seed), folder / "runs", []
    words = tiny_run(messages, runs, *LONG, "adapter=head", "privacy.rng=secure")
    for moment in range(number):
        ledger = next(runs.glob("*/*/privacy_ledger.jsonl"), None)
        wanted = (ledger.read_bytes().count(b"\n") if ledger else 0) + rng.choice([0, 0, 1, 2, rng.randrange(120)])
        command = forked.start(words, folder, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        while not (
            (found := list(runs.glob("*/*/status.json")))
            and json.loads(found[0].read_text())["restarts"] == moment
            and (wanted == 0 or _num_lines(found[0].parent) >= wanted)
        ):
            assert command.process.is_alive(), command.wait()[2]
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        signum = (signal.SIGKILL, signal.SIGTERM)[moment % 2]
        command.signal(signum)
        status = command.wait()[0]
        assert status in (-signum, 128 + signum), command.wait()[2]
        run = only_run(runs)
        page = run / REPORT
        left = page.read_text() if page.exists() else None
        told.append(f"{moment + 1}: {signum.name} ({status}): {check_what_is_told(run, capsys)}")
        (folder / "told.txt").write_text("\n".join(told) + "\n")
        if left is not None:  # what the run itself has left says the same
            assert left.count("spent so far") == page.read_text().count("spent so far")
            assert _spent(left) == _spent(page.read_text())
    return told


def _num_lines(run: Path) -> int:
    ledger = run / "privacy_ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def _spent(page: str) -> str:
    return page.partition("spent so far:")[2].partition("<")[0]


def test_what_is_told_after_a_kill_and_after_a_signal_is_what_the_ledger_holds(
    messages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_at_moments(2, 0, messages, tmp_path, capsys)


@pytest.fixture(autouse=True)
def quick_accountants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take seconds tell of the same releases."""
    monkeypatch.setattr(accountant_options, "ACCOUNTANTS", ("pld", "rdp"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", range(1, 6))
def test_at_30_moments_by_chance(run: int, messages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = killed_at_moments(6, run, messages, tmp_path, capsys)
    with capsys.disabled():
        print("", *told, sep="\n")
