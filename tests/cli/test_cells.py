"""What is remembered of a table's rows: never longer than composition would say the same."""

from __future__ import annotations

import json

import pytest

from privlm.cli import cells, compose
from privlm.report import store
from privlm.report.store import read_run

pytestmark = pytest.mark.torch_free

ROW = ["task=ewtune", "scale=smoke"]


@pytest.fixture
def composed(tmp_path, monkeypatch) -> list[tuple[str, ...]]:
    """The rows that were composed, in a home that remembers none yet."""
    monkeypatch.setenv("PRIVLM_CACHE", str(tmp_path / "cache"))
    rows: list[tuple[str, ...]] = []
    plain = compose.compose

    def counted(words):
        rows.append(words.overrides)
        return plain(words)

    monkeypatch.setattr(compose, "compose", counted)
    return rows


def cell(words=ROW, folders=()):
    return cells.cell_hasher(folders)(list(words))


def test_a_row_is_composed_once(composed):
    assert cell() == cell()
    assert cell([*ROW, "adapter=full"]) != cell()
    assert [len(words) for words in composed] == [2, 3]


def test_what_composition_reads_has_changed(composed, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    mine = tmp_path / "model" / "mine.yaml"
    mine.write_text("defaults: [tiny]\nmax_length: 16\n")
    row = [*ROW, "model=mine"]
    first = cell(row, [tmp_path])
    mine.write_text("defaults: [tiny]\nmax_length: 17\n")
    assert cell(row, [tmp_path]) != first
    mine.write_text("defaults: [tiny]\nmax_length: ${oc.decode:${oc.env:MY_LENGTH}}\n")
    found = []
    for length in ("16", "17", "16"):
        monkeypatch.setenv("MY_LENGTH", length)
        found.append(cell(row, [tmp_path]))
    assert found[0] == found[2] == first != found[1]
    assert len(composed) == 4


def test_own_data_are_looked_at_each_time(composed, tmp_path):
    messages = tmp_path / "messages.txt"
    found = []
    for text in ("ham\tshall we meet at noon\nspam\twin a prize now\n" * 4, "ham\tno\nspam\tyes, a prize\n" * 4):
        messages.write_text(text)
        found.append(cell([*ROW, f"data.path={messages}"]))
    assert len(composed) == 2
    assert found[0] != found[1]


@pytest.mark.parametrize("damage", ["{", "[]", "\0\0"])
def test_a_damaged_memory_is_made_anew(composed, tmp_path, damage):
    first = cell()
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_text(damage)
    assert cell() == first
    assert cell() == first
    assert len(composed) == 2


def test_a_home_that_cannot_be_written_only_makes_it_slower(composed, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert cell() == cell()
    assert len(composed) == 2


def test_the_cell_that_a_sealed_result_notes_needs_no_configuration(make_run, tmp_path, monkeypatch):
    noted = {"cell_hash": "d" * 64, "hash_rules": store.RULES, "content": {}}
    run = make_run(tmp_path, result=noted)
    other = make_run(tmp_path, seed=1, result=noted | {"hash_rules": store.RULES - 1})
    old = json.loads((other / "result.json").read_text())
    assert read_run(other).cell_hash != old["cell_hash"]  # of other rules: hashed anew
    monkeypatch.setattr(store, "read_config", lambda path: pytest.fail(f"{path} was read"))
    assert read_run(run).cell_hash == read_run(run).named_cell_hash == "d" * 64
