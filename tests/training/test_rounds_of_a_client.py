"""A Trainer that counts its steps from 1 in every round, and a client's ledger whose steps grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.regression import Points, Squares, linear, plan, settings

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger
from privlm.privacy.ledger_paths import client_ledger
from privlm.training.checkpoint import CheckpointStore
from privlm.training.trainer import Monitor, Private, Trainer

STEPS = 4


def round_of(folder: Path, number: int, *, stop: Any = lambda: 0, to: int = STEPS) -> Private:
    """One round of a client, with noise of its own; checkpoints after every step."""
    ledger = Ledger(client_ledger(folder, "a/b")).of("train", "a/b", first_step=number * STEPS)
    private = Private(plan(), ledger)
    config = settings(steps=STEPS, epochs=None, checkpoint_every=1)
    store = CheckpointStore(folder / f"checkpoints/train/clients/{number}", keep=9)
    monitor = Monitor(save=store, stop=stop)
    Trainer(linear(), Squares(), Points(), config, seed=number, private=private, monitor=monitor).run(to)
    ledger.close()
    return private


def test_the_steps_of_each_round_follow_those_of_the_one_before(tmp_path: Path) -> None:
    for number in range(3):
        private = round_of(tmp_path, number)
        assert private.ledger.releases[-1].step == (number + 1) * STEPS
    assert [release.step for release in private.ledger.releases] == list(range(1, 13))
    assert len({release.noise_id for release in private.ledger.releases}) == 12
    step = plan().step
    for through in (1, STEPS):  # of the third round
        spent = [Segment(step.sampling_rate, step.noise_multiplier, 2 * STEPS + through)]
        expected = accounting.epsilon(spent, plan().delta, discretization=1e-3).epsilon
        assert private.spent_through(through) == expected


def test_a_round_that_is_taken_again_costs_nothing_more_with_the_same_noise(tmp_path: Path) -> None:
    round_of(tmp_path, 0)
    round_of(tmp_path, 1)
    again = tmp_path / "checkpoints/train/clients/1"
    again.rename(tmp_path / "gone")
    private = round_of(tmp_path, 1)
    assert len(private.ledger.releases) == 3 * STEPS
    assert sum(part.steps for part in private.ledger.segments()) == 2 * STEPS


def test_the_checkpoints_of_a_client_keep_the_head_of_its_ledger(tmp_path: Path) -> None:
    round_of(tmp_path, 0, to=2)
    path = tmp_path / "checkpoints/train/clients/0/step-2/progress.json"
    progress = json.loads(path.read_text())["progress"]
    assert "ledger" not in progress
    assert progress["ledgers"]["a/b"]["releases"] == 2
    ledger = client_ledger(tmp_path, "a/b")
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match="holds 1 releases, and the checkpoint of step 2 has recorded 2"):
        round_of(tmp_path, 0)
