"""`privlm accountant ledger`: what runs have spent, alone and together, and what cannot be composed."""

import json
from pathlib import Path

import pytest

from privlm.cli.accountant import main
from privlm.errors import UsageError
from privlm.privacy.accounting import Segment, epsilon
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.run_account import as_json

pytestmark = pytest.mark.torch_free

DELTA = 1e-5
QUIET, LOUD = Setting(0.1, 1.0, 1.0, 10.0, "record"), Setting(0.1, 2.0, 1.0, 10.0, "record")
RARE = Setting(0.01, 1.0, 1.0, 1.0, "record")


def make_run(folder, name, releases, delta=DELTA):
    """A run directory whose ledger holds these (setting, noise id), or (setting, noise id, stage)."""
    run = folder / "task" / name
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"schema": 1, "state": "done"}))
    (run / "privacy.json").write_text(json.dumps({"delta": delta, "adjacency": "add_remove"}))
    ledger = Ledger(run / "privacy_ledger.jsonl")
    steps = {}
    for setting, noise_id, *stage in releases:
        ledger.of(*stage or [""]).record(steps.setdefault(noise_id, len(steps)), setting, noise_id)
    return str(run)


def answer(capsys, *argv):
    assert main(["ledger", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def noise(prefix, count):
    return [f"{prefix}{number}" for number in range(count)]


def test_every_segment_alone_and_composed(tmp_path, capsys):
    releases = [(QUIET, noise_id) for noise_id in noise("a", 40)] + [(LOUD, noise_id) for noise_id in noise("b", 30)]
    found = answer(capsys, make_run(tmp_path, "run", [*releases, (LOUD, "b29")]))
    assert [(row["segment"], row["releases"], row["distinct"]) for row in found["segments"]] == [
        (0, 40, 40),
        (1, 31, 30),
    ]
    run = [Segment(0.1, 1.0, 40), Segment(0.1, 2.0, 30)]
    for accountant in ("pld", "rdp", "gdp", "edgeworth", "prv", "contour"):
        assert found["composed"]["epsilon"][accountant] == epsilon(run, DELTA, accountant=accountant).epsilon
        assert found["segments"][0]["epsilon"][accountant] == epsilon(run[:1], DELTA, accountant=accountant).epsilon


def test_stages_and_units(tmp_path, capsys):
    """Two stages of one setting are two segments; releases for clients are never counted with those for records."""
    client = Setting(0.1, 2.0, 1.0, 10.0, "client")
    stages = [("teacher", QUIET, "a"), ("student", QUIET, "b"), ("server", client, "c")]
    releases = [(setting, noise_id, name) for name, setting, prefix in stages for noise_id in noise(prefix, 30)]
    run = make_run(tmp_path, "run", releases)
    with pytest.raises(UsageError, match=r"different units \(client, record\): ask for one, --unit"):
        main(["ledger", run])
    found = answer(capsys, run, "--unit", "record")
    assert [(row["stage"], row["segment"], row["distinct"]) for row in found["segments"]] == [
        ("teacher", 0, 30),
        ("student", 1, 30),
    ]
    assert found["composed"]["epsilon"]["pld"] == epsilon([Segment(0.1, 1.0, 60)], DELTA).epsilon
    main(["ledger", run, "--unit", "client"])
    assert "run server segment 2" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--unit: nothing was released that protects a user"):
        main(["ledger", run, "--unit", "user"])


def in_old_form(run):
    """The ledger of a run as an earlier PrivLM wrote it."""
    path = Path(run) / "privacy_ledger.jsonl"
    added = {"schema", "stage", "population", "device", "derivation", "sums", "before", "digest"}
    old = [{k: v for k, v in json.loads(line).items() if k not in added} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    return path


def test_a_line_of_an_older_version_counts_with_its_own_noise(tmp_path, capsys):
    """Whatever it says of its segment."""
    run = make_run(tmp_path, "run", [(LOUD, "a"), (QUIET, "b"), (QUIET, "c")])
    path = in_old_form(run)
    path.write_text(path.read_text().replace('"segment": 1', '"segment": 0'))
    found = answer(capsys, run)
    assert [row["noise_multiplier"] for row in found["segments"]] == [2.0, 1.0]
    assert found["composed"]["epsilon"]["pld"] == epsilon([Segment(0.1, 2.0, 1), Segment(0.1, 1.0, 2)], DELTA).epsilon
    assert "of an older version" in found["accounts"][0]["whole"]


def test_it_is_said_from_where_a_cut_would_not_be_seen(tmp_path, capsys):
    run = make_run(tmp_path, "run", [(QUIET, noise_id) for noise_id in noise("a", 5)])
    assert "no file has recorded the end" in answer(capsys, run)["accounts"][0]["whole"]
    path = Path(run)
    (path / "status.json").write_text(json.dumps({"schema": 1, "state": "interrupted"}))
    head = Ledger(path / "privacy_ledger.jsonl").head
    privacy = json.loads((path / "privacy.json").read_text())
    (path / "privacy.json").write_text(json.dumps(privacy | {"ledger": as_json(head)}))
    ledger = Ledger(path / "privacy_ledger.jsonl")
    for step in (5, 6):
        ledger.record(step, QUIET, f"b{step}")
    (account,) = answer(capsys, run)["accounts"]
    assert (account["releases"], account["recorded"], account["recorded_by"]) == (7, 5, "privacy.json")
    assert "2 after it, without a gap, but a cut at their end is not seen" in account["whole"]
    lines = (path / "privacy_ledger.jsonl").read_text().splitlines(keepends=True)
    (path / "privacy_ledger.jsonl").write_text("".join(lines[:4]))
    with pytest.raises(UsageError, match=r"holds 4 releases, and privacy\.json has recorded 5"):
        main(["ledger", run])


def test_what_force_has_removed_is_composed_apart(tmp_path, capsys):
    run = Path(make_run(tmp_path, "run", [(QUIET, noise_id) for noise_id in noise("a", 30)]))
    (run / "privacy_ledger.jsonl").rename(run / "privacy_ledger.1.jsonl")
    ledger = Ledger(run / "privacy_ledger.jsonl")
    for step, noise_id in enumerate([*noise("a", 10), *noise("b", 20)]):  # ten of them the same noise again
        ledger.record(step, QUIET, noise_id)
    found = answer(capsys, str(run))
    assert found["composed"]["epsilon"]["pld"] == epsilon([Segment(0.1, 1.0, 30)], DELTA).epsilon
    forced = found["accounts"][0]["with_forced"]
    assert (forced["releases"], forced["epsilon"]) == (50, epsilon([Segment(0.1, 1.0, 50)], DELTA).epsilon)


def test_runs_compose(tmp_path, capsys):
    first = make_run(tmp_path, "first", [(QUIET, noise_id) for noise_id in noise("a", 40)])
    second = make_run(tmp_path, "second", [(RARE, "b")])
    found = answer(capsys, first, second)
    assert found["composed"]["epsilon"]["pld"] == epsilon([Segment(0.1, 1.0, 40), Segment(0.01, 1.0, 1)], DELTA).epsilon
    assert found["segments"][1]["epsilon"]["contour"] is None  # too few steps
    main(["ledger", first, second])
    text = capsys.readouterr().out
    assert "composed" in text
    assert "refused" in text
    assert "delta 1e-05, adjacency add_remove, unit record" in text


def test_a_line_that_was_being_written_is_not_counted(tmp_path, capsys):
    run = make_run(tmp_path, "run", [(QUIET, noise_id) for noise_id in noise("a", 30)])
    with open(f"{run}/privacy_ledger.jsonl", "a", encoding="utf-8") as file:
        file.write('{"segment": 0, "st')
    assert answer(capsys, run)["segments"][0]["releases"] == 30


def test_what_cannot_be_composed(tmp_path):
    run = make_run(tmp_path, "run", [(QUIET, "a")])
    same_noise = make_run(tmp_path, "same_noise", [(QUIET, "a")])
    user = make_run(tmp_path, "user", [(Setting(0.1, 1.0, 1.0, 10.0, "user"), "b")])
    other_delta = make_run(tmp_path, "other_delta", [(QUIET, "c")], delta=1e-6)
    empty = make_run(tmp_path, "empty", [])
    for runs, message in [
        ([run, same_noise], "have released with the same noise"),
        ([run, run], "named twice"),
        ([run, user], "different units"),
        ([run, other_delta], "--delta: the runs do not name one delta"),
        ([empty], "no ledger"),
        (["nothing", "--runs", str(tmp_path)], "no run 'nothing'"),
    ]:
        with pytest.raises(UsageError, match=message):
            main(["ledger", *runs])


def test_a_damaged_ledger_is_refused(tmp_path):
    run = make_run(tmp_path, "run", [(QUIET, "a"), (QUIET, "b")])
    with open(f"{run}/privacy_ledger.jsonl", "r+", encoding="utf-8") as file:
        file.write("?")
    with pytest.raises(UsageError, match="line 1 is not a release"):
        main(["ledger", run])
