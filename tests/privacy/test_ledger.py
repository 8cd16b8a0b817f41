"""The ledger: on disk first, every noise counted once, damage never read as a fresh start."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger, Setting

pytestmark = pytest.mark.torch_free

SETTING = Setting(sampling_rate=0.01, noise_multiplier=1.0, clipping_norm=0.5, expected_batch_size=10.0, unit="record")


def write(path: Path | None, steps: int, setting: Setting = SETTING, noise: str = "a") -> Ledger:
    ledger = Ledger(path)
    for step in range(steps):
        ledger.record(step, setting, f"{noise}{step}")
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "privacy_ledger.jsonl"


def test_one_line_per_release(path: Path) -> None:
    write(path, 2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1] == {
        "segment": 0,
        "step": 1,
        "sampling_rate": 0.01,
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "expected_batch_size": 10.0,
        "unit": "record",
        "noise_id": "a1",
    }


def test_resumed_ledger_goes_on(path: Path) -> None:
    write(path, 3)
    ledger = Ledger(path)
    ledger.record(3, SETTING, "a3")
    assert ledger.segments() == Ledger(path).segments() == write(None, 4).segments() == [Segment(0.01, 1.0, 4)]


def test_redone_step_with_the_same_noise_costs_nothing(path: Path) -> None:
    write(path, 3)
    ledger = Ledger(path)
    ledger.record(2, SETTING, "a2")
    assert ledger.segments() == Ledger(path).segments() == [Segment(0.01, 1.0, 3)]
    assert len(path.read_text().splitlines()) == 4


def test_redone_step_with_fresh_noise_counts_again(path: Path) -> None:
    write(path, 3)
    ledger = Ledger(path)
    ledger.record(2, SETTING, "fresh")
    assert ledger.segments() == [Segment(0.01, 1.0, 4)]


@pytest.mark.parametrize(
    "change", [{"sampling_rate": 0.02}, {"noise_multiplier": 2.0}, {"clipping_norm": 1.0}, {"expected_batch_size": 9.0}]
)
def test_changed_setting_starts_a_segment_and_cannot_reuse_noise(path: Path, change: dict[str, float]) -> None:
    ledger, changed = write(path, 2), replace(SETTING, **change)
    with pytest.raises(UsageError, match="another seed"):
        ledger.record(1, changed, "a1")
    ledger.record(2, changed, "b2")
    ledger.record(3, SETTING, "a3")
    assert [json.loads(line)["segment"] for line in path.read_text().splitlines()] == [0, 0, 1, 2]
    assert sum(segment.steps for segment in Ledger(path).segments()) == 4


def test_unfinished_last_line_is_cut(path: Path) -> None:
    write(path, 3)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        ledger = Ledger(path)
        assert ledger.segments() == [Segment(0.01, 1.0, 2)]
        ledger.record(2, SETTING, "a2")
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0][:20], *lines[1:]],
        lambda lines: [lines[0], "", lines[1]],
        lambda lines: [*lines[:-1], "null"],
        lambda lines: [lines[0].replace('"noise_id": "a0"', '"noise_id": 0'), *lines[1:]],
        lambda lines: [lines[0].replace("0.01", '"0.01"'), *lines[1:]],
        lambda lines: [lines[0].replace("0.01", "NaN"), *lines[1:]],
        lambda lines: [lines[0].replace('"unit": "record", ', ""), *lines[1:]],
        lambda lines: [lines[0].replace("}", ', "more": 1}'), *lines[1:]],
    ],
)
def test_damaged_ledger_is_refused(path: Path, damage: Any) -> None:
    write(path, 3)
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    with pytest.raises(UsageError, match=rf"{path.name}: line \d is not a release"):
        Ledger(path)


def test_line_that_a_full_disk_cut_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = write(path, 2)

    def fail(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            ledger.record(2, SETTING, "a-longer-noise-id-than-the-next-one")
    assert ledger.segments() == [Segment(0.01, 1.0, 2)]
    ledger.record(2, SETTING, "a2")
    assert Ledger(path).segments() == [Segment(0.01, 1.0, 3)]


def test_epsilon_composes_all_segments() -> None:
    ledger = write(None, 30)
    ledger.record(30, replace(SETTING, noise_multiplier=2.0), "b")
    expected = accounting.epsilon([Segment(0.01, 1.0, 30), Segment(0.01, 2.0, 1)], 1e-5, accountant="rdp")
    assert ledger.epsilon(1e-5, accountant="rdp").epsilon == expected.epsilon


def test_budget_stops_before_the_step_that_would_exceed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, num_queries = 1e-5, 0
    true_epsilon = accounting.epsilon
    target = true_epsilon([Segment(0.01, 1.0, 77)], delta, accountant="rdp").epsilon

    def counted(*args: Any, **options: Any) -> accounting.Guarantee:
        nonlocal num_queries
        num_queries += 1
        return true_epsilon(*args, **options)

    monkeypatch.setattr(accounting, "epsilon", counted)
    ledger, step = Ledger(), 0
    next_step = Segment(0.01, 1.0, 1)
    while ledger.budget_allows(next_step, target_epsilon=target, delta=delta, accountant="rdp"):
        ledger.record(step, SETTING, f"a{step}")
        step += 1
    assert step == 77
    assert num_queries <= 14
    # Less noise costs more, more noise costs less: another kind of step is another question.
    assert not ledger.budget_allows(Segment(0.01, 0.5, 1), target_epsilon=target, delta=delta, accountant="rdp")
    assert ledger.budget_allows(next_step, target_epsilon=2 * target, delta=delta, accountant="rdp")


def test_releases_of_earlier_steps() -> None:
    ledger = write(None, 5)
    ledger.record(2, SETTING, "a2")
    ledger.record(2, SETTING, "fresh")
    assert len(ledger) == 7
    assert ledger.segments(through_step=2) == [Segment(0.01, 1.0, 4)]
    assert ledger.segments(through_step=5) == ledger.segments() == [Segment(0.01, 1.0, 6)]
