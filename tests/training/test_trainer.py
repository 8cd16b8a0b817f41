"""The training loop as a library: exact gradients, privacy, resume, early stop, schedules."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import (
    NUM_EXAMPLES,
    Points,
    Squares,
    linear,
    plan,
    private,
    settings,
    trained,
    weights,
)
from torch import Tensor, nn

from privlm.errors import PrivLMError, UsageError
from privlm.privacy.ledger import Ledger
from privlm.signals import Interrupted
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import ExampleRandom, PerExample
from privlm.training.trainer import Evaluation, Private


class Pulled(Squares):
    """Adds a penalty that pulls the weights to 1."""

    def penalty(self, model: nn.Module) -> Tensor:
        return sum(((parameter - 1) ** 2).sum() for parameter in model.parameters())  # type: ignore[return-value]


class Turned(Squares):
    """Replaces the gradient by its negative."""

    def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> dict[str, Tensor]:
        return {name: -value for name, value in gradient.items()}


def test_parameters_may_have_a_rate_of_their_own() -> None:
    """A step of SGD is the gradient times the rate: here ten times as large, and on the schedule all the same."""
    start = torch.tensor(weights(linear()))
    one = [
        torch.tensor(trained(steps=1, config=settings(learning_rates=rates)).weights) for rates in ({}, {"bias": 0.5})
    ]
    moved, moved_more = (after - start for after in one)
    assert moved_more[:3].tolist() == moved[:3].tolist()
    assert moved_more[3] == pytest.approx(10 * moved[3].item(), rel=1e-5)
    falling = trained(steps=2, config=settings(learning_rates={"bias": 0.5}, schedule="linear"))
    assert [row["learning_rate"] for _, split, row in falling.rows if split == "train"] == [0.05, 0.025]


def test_a_rate_for_no_parameter_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"trainer\.learning_rates: no parameter that trains has 'head' .* weight, bias"
    ):
        trained(config=settings(learning_rates={"head": 0.1}))


def test_learns_and_logs_every_step() -> None:
    run = trained(steps=100)
    assert run.outcome.steps == 100
    losses = [values["loss"] for values in run.train]
    assert len(losses) == 100
    assert losses[-1] < 0.05 < losses[0]
    assert run.weights == pytest.approx([2, 2, 2, 1], abs=0.1)


def test_step_minimises_the_weighted_mean_over_the_logical_batch() -> None:
    config = settings(batch_size=NUM_EXAMPLES, micro_batch_size=7)
    run = trained(Squares(weighted=True), steps=1, config=config)
    model, points = linear(), Points()
    batch = points.batch(np.arange(NUM_EXAMPLES))
    loss = Squares().losses(model, batch, ExampleRandom(0, 1, np.arange(NUM_EXAMPLES))).loss
    (loss @ batch["weight"] / batch["weight"].sum()).backward()
    expected = torch.cat([(p - 0.05 * p.grad).detach().flatten() for p in model.parameters()])  # type: ignore[operator]
    assert run.weights == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("privately", [False, True])
def test_micro_batch_size_changes_nothing(privately: bool) -> None:
    found = [
        trained(config=settings(micro_batch_size=size), private=private(plan()) if privately else None).weights
        for size in (1, 7, 32)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] == pytest.approx(found[2], abs=1e-6)


class Held:
    """Lives as long as the graph that it is a part of."""


class Holding(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, held: Held) -> Tensor:
        context.held = held
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class CountingGraphs(Squares):
    """Notes at each call how many graphs of earlier calls are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[weakref.ref[Held]] = []
        self.alive: list[int] = []

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        self.alive.append(sum(graph() is not None for graph in self.graphs))
        held = Held()
        self.graphs.append(weakref.ref(held))
        per_example = super().losses(model, batch, rng)
        return replace(per_example, loss=Holding.apply(per_example.loss, held))


@pytest.mark.parametrize("log_diagnostics", [False, True])
def test_a_private_step_holds_one_graph_at_a_time(log_diagnostics: bool) -> None:
    """Each holds the activations of a micro-batch; the neighbour check makes a dozen."""
    objective = CountingGraphs()
    trained(objective, steps=3, private=private(plan(), log_diagnostics=log_diagnostics))
    assert len(objective.alive) > 10
    assert set(objective.alive) == {0}


def test_private_run_keeps_its_training_loss_to_itself() -> None:
    quiet = trained(private=private(plan()))
    assert [split for _, split, _ in quiet.rows] == ["train"] * 21
    assert [set(values) for values in quiet.train] == [{"learning_rate"}] * 20 + [{"epsilon"}]
    open_ = trained(private=private(plan(), log_diagnostics=True))
    assert set(open_.train[0]) == {"loss", "learning_rate", "gradient_norm", "clipped_fraction", "batch_size"}
    assert sum(values.get("batch_size", 0) for values in open_.train) == pytest.approx(200, abs=50)


def test_private_release_is_recorded_each_step_and_epsilon_is_the_plans(tmp_path: Path) -> None:
    mechanism = private(plan(), tmp_path / "ledger.jsonl")
    run = trained(private=mechanism)
    assert len(mechanism.ledger) == 20
    assert mechanism.ledger.epsilon(1e-3).epsilon == mechanism.plan.epsilon
    assert run.rows[-1][2]["epsilon"] == pytest.approx(mechanism.plan.epsilon, abs=2e-3)


def test_budget_stop_refuses_the_step_that_would_exceed_epsilon() -> None:
    affordable = plan(steps=8)
    mechanism = private(replace(plan(steps=20), steps=8, target_epsilon=affordable.epsilon, epsilon=affordable.epsilon))
    run = trained(steps=20, private=mechanism)
    assert run.outcome.status == "budget_reached"
    assert run.outcome.steps == 8
    assert mechanism.ledger.epsilon(1e-3).epsilon <= affordable.epsilon


def test_weights_are_refused_under_privacy() -> None:
    with pytest.raises(PrivLMError, match="weighs its examples"):
        trained(Squares(weighted=True), private=private(plan()))


class LessTheMean(Squares):
    """What is left of the batch's mean counts, as in group-relative methods."""

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        loss_B = super().losses(model, batch, rng).loss
        return PerExample(loss_B * (1 + (loss_B - loss_B.mean()).detach()))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 32])
def test_examples_that_know_of_each_other_are_refused_whatever_the_micro_batch(micro_batch_size: int) -> None:
    """Micro-batches of one example show nothing by themselves."""
    ledger = Ledger()
    with pytest.raises(UsageError, match="loss of one record depends on other records"):
        trained(
            LessTheMean(),
            config=settings(micro_batch_size=micro_batch_size),
            private=Private(plan(), ledger),
        )
    assert len(ledger) == 0


class PointsByTheLongest(Points):
    """What an example gets depends on the longest of its batch, as with padding that counts."""

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        batch = super().batch(indices)
        return batch | {"x": batch["x"] / (1 + indices.max())}


def test_a_batch_that_is_put_together_otherwise_without_an_example_is_refused() -> None:
    with pytest.raises(UsageError, match="they change when records leave"):
        trained(data=PointsByTheLongest(), private=private(plan()))


@pytest.mark.parametrize("privately", [False, True])
def test_penalty_is_added_beside_the_examples(privately: bool) -> None:
    def mechanism() -> Private | None:
        return private(plan(steps=1)) if privately else None

    start = torch.tensor(weights(linear()))
    plain = torch.tensor(trained(steps=1, private=mechanism()).weights)
    pulled = torch.tensor(trained(Pulled(), steps=1, private=mechanism()).weights)
    assert (pulled - plain).tolist() == pytest.approx((-0.05 * 2 * (start - 1)).tolist(), abs=1e-6)


def test_direction_replaces_the_released_gradient() -> None:
    start = torch.tensor(weights(linear()))
    plain = torch.tensor(trained(steps=1, private=private(plan(steps=1))).weights)
    turned = torch.tensor(trained(Turned(), steps=1, private=private(plan(steps=1))).weights)
    assert (turned - start).tolist() == pytest.approx((start - plain).tolist(), abs=1e-6)


@pytest.mark.parametrize("objective", [Pulled(), Turned()])
def test_state_from_private_data_is_refused_by_name(objective: Pulled | Turned) -> None:
    objective.private_state = ("Fisher information",)
    with pytest.raises(UsageError, match="Fisher information of"):
        trained(objective, private=private(plan()))
    assert trained(objective).outcome.status == "done"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("privately", [False, True])
def test_resume_is_bit_exact(optimizer: str, privately: bool, tmp_path: Path) -> None:
    config = settings(optimizer=optimizer, checkpoint_every=5, schedule="cosine", warmup_steps=3)

    def run(folder: str, steps: int, stop_at: int = 0) -> Any:
        seen = [0]
        return trained(
            config=config,
            steps=steps,
            private=private(plan(), tmp_path / f"{folder}.jsonl") if privately else None,
            save=CheckpointStore(tmp_path / folder),
            tick=lambda step: seen.__setitem__(0, step),
            stop=lambda: 15 if seen[0] == stop_at and stop_at else 0,
        )

    whole = run("whole", 20)
    with pytest.raises(Interrupted):
        run("parts", 20, stop_at=7)
    parts = run("parts", 20)
    assert parts.weights == whole.weights
    assert parts.rows[0][0] == 8 or privately
    if privately:
        assert len(Ledger(tmp_path / "parts.jsonl")) == 20


def test_damaged_newest_checkpoint_gives_way_to_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    whole = trained(config=settings(checkpoint_every=5), save=store)
    (tmp_path / "step-20" / "model.safetensors").write_bytes(b"half")
    again = trained(config=settings(checkpoint_every=5), save=store)
    assert again.weights == whole.weights
    assert again.rows[0][0] == 16
    assert "step-20 is damaged (model.safetensors: not what was written): the checkpoint before it" in caplog.text


def test_checkpoint_with_more_releases_than_the_ledger_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    trained(steps=5, private=private(plan(), tmp_path / "ledger.jsonl"), save=store)
    with pytest.raises(PrivLMError, match="holds 0 releases, and the checkpoint of step 5 has recorded 5"):
        trained(steps=10, private=private(plan(), tmp_path / "another.jsonl"), save=store)


def test_early_stop_after_patience() -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    evaluation = Evaluation("dev", lambda model: {"accuracy": next(scores)}, metric="accuracy")
    run = trained(config=settings(evaluate_every=1, early_stop_patience=2), evaluation=evaluation, steps=6)
    assert run.outcome.status == "early_stop"
    assert run.outcome.steps == 4


def test_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(PrivLMError, match=r"lower trainer\.learning_rate"):
        trained(config=settings(learning_rate=1e20), steps=50)


def test_gradient_norm_is_clipped_to_max_grad_norm() -> None:
    run = trained(config=settings(max_grad_norm=1e-3, learning_rate=1.0), steps=1)
    moved = torch.tensor(run.weights) - torch.tensor(weights(linear()))
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_objective_that_averages_is_refused() -> None:
    class Mean(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            return PerExample(super().losses(model, batch, rng).loss.mean())

    with pytest.raises(ValueError, match="losses of shape"):
        trained(Mean())


def test_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="batchsize"):
        settings(batchsize=3)


def test_example_random_is_keyed_by_example_not_by_neighbours() -> None:
    together = ExampleRandom(1, 2, np.array([4, 7, 9])).normal((2,))
    alone = ExampleRandom(1, 2, np.array([7])).normal((2,))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(ExampleRandom(1, 3, np.array([7])).normal((2,)), alone)
    uniform = ExampleRandom(1, 2, np.arange(2000)).uniform()
    assert math.isclose(float(uniform.mean()), 0.5, abs_tol=0.03)
