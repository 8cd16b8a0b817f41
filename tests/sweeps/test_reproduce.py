"""`privlm reproduce`: from nothing to the rendered table, on a table of the fixture task."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from support.sweeps import Place, wait_until

pytestmark = [pytest.mark.medium, pytest.mark.torch_free]

TABLE = """\
kind: runs
title: Steps that were taken
seeds: 2
row_title: pace
metric: steps
unit: steps
decimals: 2
columns:
  steps: {title: steps}
rows:
  - name: five
    cells:
      steps: {published: 5.0, source: Table 1, tolerance: 0.5, run: [task=pacing, task.record=RECORD, scale=small]}
  - name: six
    cells:
      steps: {published: 9.0, source: Table 1, tolerance: 0.5, run: [task=pacing, task.record=RECORD, task.num_steps=6]}
  - name: never run
    cells:
      steps: {published: 7.0, source: Table 1, tolerance: 0.5, run: null}
"""


@pytest.fixture
def place(tmp_path) -> Place:
    place = Place(tmp_path, {})
    (tmp_path / "mine" / "table").mkdir(parents=True)
    (tmp_path / "mine" / "table" / "pacing_steps.yaml").write_text(TABLE.replace("RECORD", str(place.record)))
    return place


def reproduce(*words: str) -> list[str]:
    return ["reproduce", "pacing_steps", "--config-dir", "mine", *words]


def test_from_nothing_to_the_rendered_table(place):
    plan = place.privlm(*reproduce("--dry-run")).stdout
    assert "4 runs, 0 done, 4 missing" in plan
    assert not place.on_record()
    done = place.privlm(*reproduce("sweep.workers=2"))
    assert sum(place.begins().values()) == 4
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "2 of 2" in rows["five"]
    assert "small" in rows["six"]
    assert "not run" in rows["never"]
    written = {path.name for path in (place.folder / "runs" / "tables").iterdir()}
    assert {f"pacing_steps.{suffix}" for suffix in ("md", "csv", "tex", "html")} <= written
    assert "5.00" in (place.folder / "runs" / "tables" / "pacing_steps.md").read_text()
    again = place.privlm(*reproduce("--json"))
    assert sum(place.begins().values()) == 4
    assert {value["row"]: value["seeds"] for value in json.loads(again.stdout)["values"]} == {
        "five": 2, "six": 2, "never run": 0,
    }  # fmt: skip
    listed = json.loads(place.privlm("reproduce", "--list", "--config-dir", "mine", "--json").stdout)["values"]
    (mine,) = [value for value in listed if value["table"] == "pacing_steps"]
    assert (mine["cells"], mine["published"], mine["measured"], mine["missing"]) == (2, 2, 2, 0)


def test_killed_in_between_the_same_command_finishes(place):
    words = reproduce("task.pace=0.3", "--seeds", "1")
    started = place.start(*words)
    wait_until(lambda: any("step 1" in line for line in place.on_record()))
    started.kill()
    started.communicate()
    place.privlm(*words)
    steps = Counter({line: number for line, number in place.on_record().items() if "step" in line})
    once = Counter({f"0 step {number}": 2 for number in range(5)}) + Counter(["0 step 5"])  # of both rows
    assert sum((steps - once).values()) <= 1  # a step that was on record, but not yet durable
    assert not once - steps


def test_a_run_that_fails_is_named_and_the_table_shown(place):
    done = place.privlm(*reproduce("task.falls={seed1: always}"), status=1)
    assert "it falls each time" in done.stderr
    assert "1 of 2" in done.stdout


def test_rows_that_cannot_be_run_are_named_before_anything_begins(place):
    table = place.folder / "mine" / "table" / "pacing_steps.yaml"
    table.write_text(table.read_text().replace("task.num_steps=6", "task.num_step=6"))
    done = place.privlm(*reproduce(), status=2)
    assert "six: no key 'task.num_step'; did you mean 'task.num_steps'?" in done.stderr
    assert "--row NAME" in done.stderr
    assert not place.on_record()
    place.privlm(*reproduce("--row", "five"))
    assert sum(place.begins().values()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reproduce",), "which table?"),
        (("reproduce", "pacing_step", "--config-dir", "mine"), "pacing_steps"),
        (reproduce("seed=3"), "--seeds N"),
        (reproduce("--seeds", "0"), "--seeds must be at least 1"),
        (reproduce("--row", "fife"), "did you mean five"),
        (("reproduce", "ewtune_noise"), "privlm tables ewtune_noise prints it"),
        (("reproduce", "ewtune"), "name one of them"),
    ],
)
def test_wrong_words_are_refused(place, words, message):
    assert message in place.privlm(*words, status=2).stderr
