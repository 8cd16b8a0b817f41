"""Checkpoints: what they hold, what a resumed run takes from them, and what a damaged one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import Squares, plan, private, settings, trained, weights
from torch import Tensor, nn

from privlm.errors import PrivLMError
from privlm.privacy.ledger import Ledger
from privlm.training.checkpoint import Checkpoint, CheckpointStore, UnusableCheckpoint
from privlm.training.evaluation import Evaluation


class Killed(Exception):
    pass


class Average(Squares):
    """Keeps an average of the weights and the length of their way, as EMA and SI do."""

    def __init__(self) -> None:
        super().__init__()
        self.average: dict[str, Tensor] = {}
        self.way = 0.0

    def stepped(self, model: nn.Module, step: int) -> None:
        for name, parameter in model.named_parameters():
            before = self.average.get(name, torch.zeros_like(parameter))
            self.average[name] = 0.9 * before + 0.1 * parameter.detach()
            self.way += float((parameter.detach() - before).norm())

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "way": self.way}

    def load_state_dict(self, state: Any) -> None:
        self.average, self.way = dict(state["average"]), state["way"]


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 1))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def killed_at(step: int) -> Callable[[int], None]:
    def tick(now: int) -> None:
        if now == step:
            raise Killed

    return tick


def run(folder: Path, *, objective: Average | None = None, privately: bool = False, **options: Any) -> Any:
    return trained(
        objective or Average(),
        steps=12,
        model=plain() if privately else normed(),
        config=settings(checkpoint_every=4, schedule="cosine", optimizer=options.pop("optimizer", "sgd")),
        private=private(plan(), folder.with_suffix(".jsonl")) if privately else None,
        save=CheckpointStore(folder),
        **options,
    )


@pytest.mark.parametrize("privately", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume_gives_weights_buffers_and_objective_of_the_uninterrupted_run(
    optimizer: str, privately: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "privately": privately}
    uninterrupted, stopped, resumed = (Average() for _ in range(3))
    whole = run(tmp_path / "whole", objective=uninterrupted, **options)
    with pytest.raises(Killed):
        run(tmp_path / "cut", objective=stopped, tick=killed_at(10), **options)
    again = run(tmp_path / "cut", objective=resumed, **options)
    assert again.rows[0][0] == 9
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert resumed.way == uninterrupted.way
    assert all(torch.equal(uninterrupted.average[name], value) for name, value in resumed.average.items())
    if privately:
        assert len(Ledger(tmp_path / "cut.jsonl")) == 14  # two steps again, with the same noise
        assert sum(segment.steps for segment in Ledger(tmp_path / "cut.jsonl").segments()) == 12


def test_checkpoint_holds_persistent_buffers_and_no_frozen_weights(tmp_path: Path) -> None:
    model = normed()
    model[0].requires_grad_(False)
    model.register_buffer("passing", torch.zeros(2), persistent=False)
    trained(model=model, steps=1, save=CheckpointStore(tmp_path))
    checkpoint = CheckpointStore(tmp_path).load()
    assert checkpoint is not None
    statistics = {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert checkpoint.tensors.keys() == statistics | {"4.weight", "4.bias"}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 8 and 12."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    run(folder)
    return folder


FILES = ("model.safetensors", "optimizer.pt", "objective.pt", "progress.json", "digests.json")


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_gives_way_to_the_checkpoint_before(
    name: str, damage: Callable[[Path], Any], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    damage(folder / "step-12" / name)
    checkpoint = CheckpointStore(folder).load()
    assert checkpoint is not None
    assert checkpoint.step == 8
    assert "step-12" in caplog.text
    assert "the checkpoint before it is used" in caplog.text


def test_run_without_a_usable_checkpoint_says_what_to_do(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for step in (8, 12):
        flip_a_bit(folder / f"step-{step}" / "model.safetensors")
    with pytest.raises(PrivLMError, match=r"no checkpoint in .*copy can be used .*model\.safetensors.*--force"):
        run(folder)


def test_resumed_run_takes_the_place_of_a_damaged_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    flip_a_bit(folder / "step-12" / "optimizer.pt")
    run(folder)
    for step in (8, 12):
        CheckpointStore(folder).verify(step)


def checkpoint(step: int, best_step: int | None = None, **changes: Any) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.ones(2)}, {}, best_step=best_step, **changes)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_the_last_few_are_kept_and_those_that_they_name_as_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step, best_step in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5)):
        store.save(checkpoint(step, best_step))
        if step == 4:
            assert steps_in(tmp_path) == [2, 3, 4]
    assert steps_in(tmp_path) == [2, 4, 5]
    store.save(checkpoint(6, 5))
    assert steps_in(tmp_path) == [5, 6]


def test_checkpoints_of_a_try_that_was_given_up_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(9))
    store.save(checkpoint(4))
    assert steps_in(tmp_path) == [4]


@pytest.mark.parametrize("value", [np.float64(1), lambda: 0, [Killed()]], ids=["numpy", "code", "object"])
def test_state_that_could_not_be_read_again_is_refused_when_it_is_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state_dict\(\) of the objective: a checkpoint holds tensors, numbers"):
        CheckpointStore(tmp_path).save(checkpoint(1, objective={"memory": value}))
    assert CheckpointStore(tmp_path).load() is None


def test_objective_that_gives_state_and_takes_none_is_refused(tmp_path: Path) -> None:
    class Forgetful(Squares):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": 3}

    trained(Forgetful(), steps=1, save=CheckpointStore(tmp_path))
    with pytest.raises(TypeError, match="Forgetful has a state_dict but no load_state_dict"):
        trained(Forgetful(), steps=2, save=CheckpointStore(tmp_path))


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained(model=nn.Linear(3, 1), steps=1, save=CheckpointStore(tmp_path))
    with pytest.raises(PrivLMError, match=r"another model: 1 tensors differ, the first is bias \(saved: .*now: none"):
        trained(model=nn.Linear(3, 1, bias=False), steps=2, save=CheckpointStore(tmp_path))


class Scores:
    """An evaluation with given values, one after the other, as a function of the weights seen."""

    def __init__(self, *values: float) -> None:
        self.values = values
        self.weights: list[list[float]] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        step = len(self.weights)
        self.weights.append(weights(model))
        return {"accuracy": self.values[step], "twice": 2 * self.values[step]}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("mode", "best"), [(None, 2), ("max", 2), ("min", 4)])
def test_best_weights_are_restored_and_told(mode: str | None, best: int, stored: bool, tmp_path: Path) -> None:
    scores, objective = Scores(0.5, 0.9, 0.3, 0.1, 0.9, 0.4), Average()
    config = settings(evaluate_every=1, restore_best=True, early_stop_mode=mode, keep_checkpoints=1)
    options: dict[str, Any] = {"save": CheckpointStore(tmp_path, keep=1)} if stored else {}
    evaluation = Evaluation("dev", scores, metric="accuracy")
    run = trained(objective, steps=6, config=config, evaluation=evaluation, **options)
    assert run.outcome.best_step == best
    assert run.outcome.best == {"accuracy": scores.values[best - 1], "twice": 2 * scores.values[best - 1]}
    assert run.outcome.steps == 6
    assert run.weights == scores.weights[best - 1]
    shorter = Average()
    trained(shorter, steps=best)
    assert objective.way == shorter.way


def test_best_step_survives_a_kill(tmp_path: Path) -> None:
    """Also where the best was many checkpoints ago, and where the run had been finished already."""
    values = (0.5, 0.9, 0.3, 0.1, 0.2, 0.4, 0.1, 0.1)

    def train(folder: str, evaluations: tuple[float, ...], kill_at: int = 0) -> Any:
        objective = Average()
        found = trained(
            objective,
            steps=8,
            model=normed(),
            config=settings(evaluate_every=1, restore_best=True, checkpoint_every=2),
            evaluation=Evaluation("dev", Scores(*evaluations), metric="accuracy"),
            save=CheckpointStore(tmp_path / folder, keep=1),
            tick=killed_at(kill_at),
        )
        return found, objective

    whole, objective = train("whole", values)
    with pytest.raises(Killed):
        train("cut", values, kill_at=7)
    assert steps_in(tmp_path / "cut") == [2, 6]
    for evaluations in (values[6:], ()):  # resumed, then asked again when nothing is left to do
        again, resumed = train("cut", evaluations)
        assert again.outcome == whole.outcome
        assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
        assert resumed.way == objective.way


def test_damaged_best_is_noticed_before_training_goes_on(tmp_path: Path) -> None:
    config = settings(evaluate_every=1, restore_best=True, checkpoint_every=1)
    options: dict[str, Any] = {"config": config, "save": CheckpointStore(tmp_path)}
    trained(steps=4, evaluation=Evaluation("dev", Scores(0.9, 0.1, 0.1, 0.1), metric="accuracy"), **options)
    flip_a_bit(tmp_path / "step-1" / "model.safetensors")
    with pytest.raises(UnusableCheckpoint, match="step-1 is damaged"):
        trained(steps=8, evaluation=Evaluation("dev", Scores(), metric="accuracy"), **options)


def test_progress_is_plain_json(tmp_path: Path) -> None:
    evaluation = Evaluation("dev", Scores(float("nan"), 0.5), metric="accuracy")
    trained(steps=2, config=settings(evaluate_every=1), evaluation=evaluation, save=CheckpointStore(tmp_path))
    progress = json.loads((tmp_path / "step-2" / "progress.json").read_text())
    assert progress["progress"]["evaluations"] == {"step": 2, "values": {"accuracy": 0.5, "twice": 1.0}, "stale": 0}
