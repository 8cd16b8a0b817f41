"""The ledger: on disk first, every noise counted once, damage never read as a fresh start."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privlm.errors import UsageError
from privlm.privacy import accounting, keyed_random
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger, Setting

pytestmark = pytest.mark.torch_free

SETTING = Setting(sampling_rate=0.01, noise_multiplier=1.0, clipping_norm=0.5, expected_batch_size=10.0, unit="record")


def in_old_form(path: Path) -> None:
    """As an earlier PrivLM wrote it."""
    added = {"schema", "stage", "population", "device", "derivation", "sums", "before", "digest"}
    old = [{k: v for k, v in json.loads(line).items() if k not in added} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))


def write(path: Path | None, steps: int, setting: Setting = SETTING, noise: str = "a") -> Ledger:
    ledger = Ledger(path)
    for step in range(steps):
        ledger.record(step, setting, f"{noise}{step}")
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "privacy_ledger.jsonl"


def test_one_line_per_release(path: Path) -> None:
    ledger = Ledger(path).of("train", "north")
    for step in range(2):
        ledger.record(step, SETTING, f"a{step}", device="cpu", sums_digest=b"private")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    digest = lines[1].pop("digest")
    assert lines[1] == {
        "schema": 2,
        "stage": "train",
        "population": "north",
        "segment": 0,
        "step": 1,
        "sampling_rate": 0.01,
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "expected_batch_size": 10.0,
        "unit": "record",
        "device": "cpu",
        "derivation": keyed_random.DERIVATION,
        "noise_id": "a1",
        "sums": b"private".hex(),
        "before": lines[0]["digest"],
    }
    assert lines[0]["before"] == 64 * "0"
    assert digest == hashlib.sha256(json.dumps(lines[1]).encode()).hexdigest() == ledger.head.digest


def test_lines_of_an_older_version_are_read(path: Path) -> None:
    write(path, 3)
    in_old_form(path)
    ledger = Ledger(path)
    assert ledger.segments() == [Segment(0.01, 1.0, 3)]
    assert [(r.stage, r.population, r.device, r.derivation) for r in ledger.releases] == 3 * [("", "", "", 1)]
    with pytest.raises(UsageError, match=r"older version, whose lines hold no digests.* --force"):
        ledger.of("train").record(3, SETTING, "a3")
    assert Ledger(path).segments() == [Segment(0.01, 1.0, 3)]


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
    with pytest.raises(UsageError, match=r"step 1 would use noise again .* another seed"):
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
        lambda lines: [lines[0].replace('"stage": ""', '"stage": null'), *lines[1:]],
        lambda lines: [lines[0].replace('"step": 0', '"step": "0"'), *lines[1:]],
        lambda lines: [*lines, lines[0].replace('"step": 0', '"step": 9')],
        *(
            lambda lines, old=f'"{name}": {old}', new=f'"{name}": {new}': [lines[0].replace(old, new), *lines[1:]]
            for name, old, values in (
                ("sampling_rate", "0.01", ("0", "0.0", "1.5", "-0.1", "true", "NaN", "1e999", '"0.01"', "null", "[]")),
                ("noise_multiplier", "1.0", ("true", "-1.0", "Infinity", "1e999", "null")),
                ("clipping_norm", "0.5", ("0", "-0.5", "true", "Infinity")),
                ("expected_batch_size", "10.0", ("0", "-16", "true", "NaN")),
                ("unit", '"record"', ('"recrod"', "1", "[]", '""')),
                ("step", "0", ("true", "-1", "0.0", "1e400")),
                ("segment", "0", ("false", "-1", "0.5")),
                ("noise_id", '"a0"', ('""', "null", "{}")),
            )
            for new in values
        ),
        lambda lines: [lines[0].replace('"step": 0', '"step": 0, "step": 0'), *lines[1:]],
        lambda lines: [lines[0].replace("{", '{"schema": 3, ', 1), *lines[1:]],
        lambda lines: ["[" * 100_000, *lines],
    ],
)
@pytest.mark.parametrize("version", ["chained", "older"])
def test_a_line_that_is_no_release_is_refused_by_its_number(path: Path, damage: Any, version: str) -> None:
    write(path, 3)
    if version == "older":
        in_old_form(path)
    before = path.read_text().splitlines()
    after = damage(before)
    if after == before:
        pytest.skip("the older version has no such field")
    path.write_text("\n".join(after) + "\n")
    with pytest.raises(UsageError, match=rf"{path.name}: line \d (is not |does not follow|and the line before it)"):
        Ledger(path)


@pytest.mark.parametrize(
    "setting",
    [{"sampling_rate": 0.0}, {"sampling_rate": 1.5}, {"clipping_norm": 0.0}, {"expected_batch_size": -1.0},
     {"noise_multiplier": math.nan}, {"noise_multiplier": True}, {"unit": "recrod"}],
)  # fmt: skip
def test_a_release_that_could_not_be_read_again_is_not_written(path: Path, setting: dict[str, Any]) -> None:
    ledger = write(path, 1)
    with pytest.raises(UsageError, match="a release that no ledger can hold"):
        ledger.record(1, replace(SETTING, **setting), "a1")
    assert len(ledger) == len(Ledger(path)) == 1


def test_two_writers_never_erase_each_other(path: Path) -> None:
    """Within one process the later takes over, and the earlier is refused; of two processes the later is refused."""
    first, second = write(path, 2), Ledger(path)
    second.record(2, SETTING, "b2")
    with pytest.raises(UsageError, match="has changed since it was read"):
        first.record(2, SETTING, "a2")
    script = (
        f"from pathlib import Path; from privlm.privacy.ledger import *; path = Path({str(path)!r})\n"
        f"try: Ledger(path).record(3, {SETTING!r}, 'c3')\nexcept Exception as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert f"{path} is being written by another process" in said
    second.record(3, SETTING, "b3")
    assert [release.noise_id for release in Ledger(path).releases] == ["a0", "a1", "b2", "b3"]


@pytest.mark.parametrize("change", ["removed", "replaced", "added to"])
def test_a_file_that_changes_under_its_writer_stops_the_next_release(path: Path, change: str) -> None:
    ledger = write(path, 2)
    content = path.read_bytes()
    if change == "added to":
        path.open("ab").write(content.splitlines(keepends=True)[1])
    else:
        path.unlink()
    if change == "replaced":
        path.write_bytes(content)
    with pytest.raises(UsageError, match="removed, replaced or written by somebody else"):
        ledger.record(2, SETTING, "a2")
    assert len(ledger) == 2


def test_an_account_that_was_put_aside_is_a_part_of_the_chain(path: Path) -> None:
    write(path, 2)
    aside = path.with_name("privacy_ledger.1.jsonl")
    path.rename(aside)
    write(path, 2, noise="b")
    assert len(Ledger(path)) == len(Ledger(aside)) == 2
    aside.write_text(aside.read_text().replace("a1", "z1"))
    with pytest.raises(UsageError, match="line 1 does not follow the account that this one began after"):
        Ledger(path)
    aside.unlink()
    with pytest.raises(UsageError, match="line 1 does not follow the account"):
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


def test_a_stage_sees_the_whole_ledger_and_counts_its_own(path: Path) -> None:
    ledger = Ledger(path)
    teacher, student = ledger.of("teacher"), ledger.of("student")
    for step in range(1, 4):
        teacher.record(step, SETTING, f"t{step}")
    for step in range(1, 6):
        student.record(step, replace(SETTING, noise_multiplier=2.0), f"s{step}")
    assert (len(teacher), len(student), len(ledger), len(ledger.of("other"))) == (3, 5, 8, 0)
    whole = [Segment(0.01, 1.0, 3), Segment(0.01, 2.0, 5)]
    assert teacher.segments() == student.segments() == ledger.segments() == Ledger(path).segments() == whole
    assert student.segments(through_step=2) == [Segment(0.01, 1.0, 3), Segment(0.01, 2.0, 2)]
    assert teacher.segments(through_step=2) == [Segment(0.01, 1.0, 2), Segment(0.01, 2.0, 5)]
    assert ledger.segments(through_step=2) == [Segment(0.01, 1.0, 2), Segment(0.01, 2.0, 2)]
    spent = accounting.epsilon(whole, 1e-5, accountant="rdp").epsilon
    assert student.epsilon(1e-5, accountant="rdp").epsilon == spent
    assert [r.segment for r in ledger.releases] == [0, 0, 0, 1, 1, 1, 1, 1]
    for view in (student, ledger):  # one more step of the student's kind, beside all that was released
        for target, allowed in ((1.01 * spent, True), (spent, False)):
            options = {"target_epsilon": target, "delta": 1e-5, "accountant": "rdp"}
            assert view.budget_allows(Segment(0.01, 2.0, 1), **options) == allowed


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda ledger: (ledger.of("student"), 1, SETTING),
        lambda ledger: (ledger.of("teacher", "south"), 1, SETTING),
        lambda ledger: (ledger.of("teacher"), 2, SETTING),
        lambda ledger: (ledger.of("teacher"), 1, replace(SETTING, unit="client")),
    ],
    ids=["stage", "population", "step", "unit"],
)
def test_noise_of_another_place_is_refused(path: Path, elsewhere: Any, resumed: bool) -> None:
    ledger = Ledger(path)
    ledger.of("teacher").record(1, SETTING, "a")
    view, step, setting = elsewhere(Ledger(path) if resumed else ledger)
    with pytest.raises(UsageError, match=rf"step {step} would use noise again .* at step 1 with stage teacher"):
        view.record(step, setting, "a")
    assert path.read_text().count("\n") == 1


def test_the_same_noise_for_other_sums_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    ledger.record(1, SETTING, "a", sums_digest=b"some sums")
    ledger.record(1, SETTING, "a", sums_digest=b"some sums")  # the same step again
    with pytest.raises(UsageError, match=r"step 1 would use noise again .* other sums.* another seed"):
        ledger.of("").record(1, SETTING, "a", sums_digest=b"others")
    assert ledger.segments() == [Segment(0.01, 1.0, 1)]
    assert len(ledger) == 2
    with pytest.raises(UsageError, match="other sums"):
        Ledger(path).record(1, SETTING, "a", sums_digest=b"others")  # another process knows it from the line


def test_units_are_never_counted_together() -> None:
    ledger, clients = write(None, 3), replace(SETTING, unit="client", noise_multiplier=2.0)
    for step in range(4):
        ledger.record(step, clients, f"c{step}")
    step = Segment(0.01, 2.0, 1)
    for ask in (
        ledger.segments,
        lambda: ledger.segments(through_step=1),
        lambda: ledger.epsilon(1e-5),
        lambda: ledger.budget_allows(step, target_epsilon=1.0, delta=1e-5),
    ):
        with pytest.raises(UsageError, match=r"different units \(client, record\)"):
            ask()
    assert ledger.segments(unit="record") == [Segment(0.01, 1.0, 3)]
    assert ledger.segments(through_step=1, unit="client") == [Segment(0.01, 2.0, 2)]
    answer = ledger.epsilon(1e-5, unit="client", accountant="rdp")
    assert answer == accounting.epsilon([Segment(0.01, 2.0, 4)], 1e-5, accountant="rdp")
    options = {"delta": 1e-5, "accountant": "rdp", "unit": "client"}
    assert not ledger.budget_allows(step, target_epsilon=answer.epsilon, **options)
    assert ledger.budget_allows(step, target_epsilon=1.1 * answer.epsilon, **options)


def test_disjoint_populations_cost_what_the_dearest_of_them_costs() -> None:
    ledger = Ledger()
    for population, steps, noise in (("north", 30, 1.0), ("south", 20, 0.8), ("", 5, 2.0)):
        for step in range(steps):
            ledger.of("train", population).record(step, replace(SETTING, noise_multiplier=noise), f"{population}{step}")
    parts = {"north": Segment(0.01, 1.0, 30), "south": Segment(0.01, 0.8, 20), "": Segment(0.01, 2.0, 5)}

    def spent(*names: str) -> float:
        return accounting.epsilon([parts[name] for name in names], 1e-5, accountant="rdp").epsilon

    def told(**options: Any) -> float:
        return ledger.epsilon(1e-5, accountant="rdp", **options).epsilon

    assert told() == pytest.approx(spent("north", "south", ""), rel=1e-12)
    assert told(disjoint=True) == pytest.approx(max(spent("north", ""), spent("south", "")), rel=1e-12)
    assert told(disjoint=True) < told()
    assert write(None, 3).epsilon(1e-5, disjoint=True) == write(None, 3).epsilon(1e-5)
