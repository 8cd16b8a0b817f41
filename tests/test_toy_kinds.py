"""A task, a model, an adapter and a data format that come as one folder, without a change to any file of PrivLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privlm import registry
from privlm.cli import main

pytestmark = pytest.mark.medium

PACKAGE = Path(__file__).parent / "fixtures" / "toy_kinds"
LINES = ("aeiou", "banana oasis", "rhythm", "queue", "strengths", "audio idea", "crypt", "io")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PACKAGE))
    registry.tasks.cache_clear()
    yield
    registry.tasks.cache_clear()


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    """result.json of a run of the task."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES * 8))
    runs = tmp_path / f"runs{len(words)}"
    assert main(["run", "task=counting", f"data.path={tmp_path / 'lines.txt'}", f"runs={runs}", *words]) == 0
    (directory,) = (runs / "counting").iterdir()
    return json.loads((directory / "result.json").read_text())


def values(result: dict[str, Any]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in result["rows"]}


def test_it_learns_with_the_layer_that_its_adapter_leaves_open(tmp_path: Path) -> None:
    assert values(run(tmp_path))["accuracy"] == 1.0
    assert values(run(tmp_path, "model.width=1", "adapter.layer=0", "trainer.steps=1"))["accuracy"] < 1.0


def test_privacy_is_the_same_one_switch(tmp_path: Path) -> None:
    private = values(run(tmp_path, "privacy=dp_sgd", "privacy.delta=1e-3"))
    assert private["accuracy"] > 0.5
    assert 0 < private["epsilon"] <= 3.0


def test_what_is_wrong_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "task=counting", f"runs={tmp_path}"]
    assert main([*words, "adapter.layer=2"]) == 2
    assert "adapter.layer must be at least 0 and at most 1, not 2" in capsys.readouterr().err
    assert main(words) == 2
    assert "data.path: name a file of texts" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
