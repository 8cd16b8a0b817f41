"""What an objective may rely on: random streams, penalty, direction, state, parts of its loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import NUM_EXAMPLES, Points, Squares, linear, plan, private, settings, trained, weights
from torch import Tensor, nn

from privlm.errors import PrivLMError, UsageError
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import ExampleRandom, Objective, PerExample
from privlm.training.trainer import Private, Trainer

EXAMPLES = np.arange(20_000)


def draws(rng: ExampleRandom) -> dict[str, Tensor]:
    return {
        "normal": rng.normal((1,))[:, 0],
        "second normal": rng.normal((1,))[:, 0],
        "named normal": rng.normal((1,), stream="offset")[:, 0],
        "uniform": rng.uniform(),
        "named uniform": rng.uniform(stream="other"),
        "same stream, another kind": rng.uniform(stream="offset"),
        "integers": rng.integers(0, 1000).float(),
    }


def test_no_two_draws_of_a_step_are_related() -> None:
    ranks = {name: values.argsort().argsort().double() for name, values in draws(ExampleRandom(0, 1, EXAMPLES)).items()}
    for (one, x), (other, y) in combinations(ranks.items(), 2):
        for a, b in ((x, y), ((x - x.mean()).abs(), y)):
            correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
            assert abs(correlation) < 4 / len(EXAMPLES) ** 0.5, (one, other)


def test_draws_have_the_distribution_of_their_name() -> None:
    found = draws(ExampleRandom(0, 1, EXAMPLES))
    assert found["second normal"].mean() == pytest.approx(0, abs=0.03)
    assert found["second normal"].std() == pytest.approx(1, abs=0.03)
    assert found["uniform"].mean() == pytest.approx(0.5, abs=0.01)
    assert set(ExampleRandom(0, 1, EXAMPLES).integers(3, 6).tolist()) == {3, 4, 5}


def test_each_draw_is_keyed_by_example_and_step_whatever_the_micro_batch() -> None:
    together, alone = draws(ExampleRandom(1, 2, np.array([4, 7, 9]))), draws(ExampleRandom(1, 2, np.array([7])))
    assert all(together[name][1] == alone[name][0] for name in together)
    for other in (ExampleRandom(1, 3, np.array([7])), ExampleRandom(2, 2, np.array([7]))):
        assert not any(alone[name][0] == value[0] for name, value in draws(other).items())


def test_a_named_stream_is_the_same_whatever_is_drawn_before_it() -> None:
    first, later = (ExampleRandom(0, 1, np.arange(3)) for _ in range(2))
    later.normal((2,))
    later.uniform()
    assert torch.equal(first.normal((2,), stream="offset"), later.normal((2,), stream="offset"))


class Penalised(Squares):
    def __init__(self, penalty: Any) -> None:
        super().__init__()
        self.value = penalty

    def penalty(self, model: nn.Module) -> Tensor | None:
        return self.value


@pytest.mark.parametrize("privately", [False, True])
@pytest.mark.parametrize("penalty", [None, 0, torch.tensor(3.0)], ids=["none", "number", "constant"])
def test_penalty_without_a_graph_adds_nothing(penalty: Any, privately: bool) -> None:
    """As before the first task of a sequence: a sum over no earlier task is the number 0."""
    options = [{"private": private(plan())} if privately else {} for _ in range(2)]
    assert trained(Penalised(penalty), **options[0]).weights == trained(**options[1]).weights


def test_penalty_that_is_no_number_is_refused() -> None:
    class Unsummed(Squares):
        def penalty(self, model: nn.Module) -> Tensor:
            return next(model.parameters()) ** 2

    with pytest.raises(ValueError, match=r"penalty of the objective has shape \(1, 3\): it must be one number"):
        trained(Unsummed())


class Weighted(Squares):
    """Weights by the step of the batch: 0 in the second batch of 10, else 1."""

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        loss = super().losses(model, batch, rng).loss
        return PerExample(loss, torch.full_like(loss, float(rng.step != 2)), {"half": loss / 2})


def test_batch_whose_weights_are_all_zero_adds_no_gradient() -> None:
    run = trained(Weighted(), steps=3)
    one = trained(steps=1)
    assert trained(Weighted(), steps=2).weights == one.weights
    assert "loss" not in run.train[1]
    assert run.train[1]["gradient_norm"] == 0
    assert {"loss", "half"} <= run.train[2].keys()


def test_penalty_acts_in_a_batch_without_weight() -> None:
    class Pulled(Weighted):
        def penalty(self, model: nn.Module) -> Tensor:
            return sum((parameter**2).sum() for parameter in model.parameters())  # type: ignore[return-value]

    one, two = (torch.tensor(trained(Pulled(), steps=steps).weights) for steps in (1, 2))
    torch.testing.assert_close(two, one - 0.05 * 2 * one)


class Parts(Squares):
    """The two halves of each loss, named; weighted by 1, 2 or 3."""

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        loss = super().losses(model, batch, rng).loss
        return PerExample(loss, batch["weight"] if self.weighted else None, {"third": loss / 3, "rest": 2 * loss / 3})


@pytest.mark.parametrize("micro_batch_size", [3, 50])
def test_parts_are_logged_as_their_weighted_means(micro_batch_size: int) -> None:
    config = settings(batch_size=NUM_EXAMPLES, micro_batch_size=micro_batch_size)
    (row,) = trained(Parts(weighted=True), steps=1, config=config).train
    batch = Points().batch(np.arange(NUM_EXAMPLES))
    loss = (linear()(batch["x"]).squeeze(-1) - batch["y"]).detach() ** 2
    mean = float(loss @ batch["weight"] / batch["weight"].sum())
    assert row["loss"] == pytest.approx(mean)
    assert row["third"] == pytest.approx(mean / 3)
    assert row["rest"] == pytest.approx(2 * mean / 3)


def test_parts_of_a_private_run_are_diagnostics() -> None:
    assert "third" not in trained(Parts(), private=private(plan())).train[0]
    open_ = trained(Parts(), private=private(plan(), log_diagnostics=True)).train
    assert all(row["third"] == pytest.approx(row["loss"] / 3) for row in open_ if "loss" in row)


@pytest.mark.parametrize("parts", [{"loss": torch.zeros(4)}, {"mean": torch.zeros(())}], ids=["name", "shape"])
def test_parts_that_cannot_be_logged_are_refused(parts: dict[str, Tensor]) -> None:
    class Wrong(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            return PerExample(super().losses(model, batch, rng).loss, None, parts)

    with pytest.raises(ValueError, match=r"'loss', which the trainer logs itself|gave mean of shape"):
        trained(Wrong())


def test_private_state_is_refused_whatever_the_objective_overrides() -> None:
    class Replaying(Squares):
        private_state = ("replay memory",)

    with pytest.raises(UsageError, match="privacy: replay memory of Replaying comes from private data"):
        trained(Replaying(), private=private(plan()))
    assert trained(Replaying()).outcome.status == "done"


def test_batches_of_ones_own_are_refused_under_privacy() -> None:
    class First:
        def indices(self, step: int) -> np.ndarray:
            return np.arange(10)

    with pytest.raises(UsageError, match="Poisson sampling: give the Trainer no batches"):
        trained(private=private(plan()), batches=First())


def test_what_is_no_objective_is_refused() -> None:
    class Duck:
        losses = Squares().losses

    with pytest.raises(TypeError, match="Duck is no Objective"):
        Trainer(linear(), Duck(), Points(), settings())  # type: ignore[arg-type]


def test_direction_for_no_parameter_is_refused() -> None:
    class Lost(Squares):
        def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> dict[str, Tensor]:
            return {"wieght": gradient["weight"]}

    with pytest.raises(ValueError, match="gave a gradient for 'wieght'"):
        trained(Lost())


def test_stepped_sees_the_model_after_each_step() -> None:
    seen: list[tuple[int, list[float]]] = []

    class Watching(Squares):
        def stepped(self, model: nn.Module, step: int) -> None:
            seen.append((step, weights(model)))

    run = trained(Watching(), steps=3)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert seen[0][1] == trained(steps=1).weights
    assert seen[-1][1] == run.weights


def test_chance_in_penalty_direction_and_stepped_is_that_of_the_step_alone() -> None:
    """torch's global generator is keyed there too, whatever the micro-batches have drawn before."""

    class Chance(Squares):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            torch.rand(())
            return super().losses(model, batch, rng)

        def penalty(self, model: nn.Module) -> None:
            self.drawn.append(float(torch.rand(())))

        def stepped(self, model: nn.Module, step: int) -> None:
            self.drawn.append(float(torch.rand(())))

    found = []
    for size in (2, 5):
        objective = Chance()
        model = linear()
        torch.manual_seed(size)
        before = torch.get_rng_state()
        trained(objective, steps=3, model=model, config=settings(micro_batch_size=size))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(objective.drawn)
    assert found[0] == found[1]
    assert len(set(found[0])) == 6


def test_dropout_is_secret_where_privacy_is() -> None:
    """Masks that follow from the seed depend, in a micro-batch, on its other examples."""

    class Dropped(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            return PerExample(torch.rand(len(batch["x"])))

    def is_repeated(mechanism: Private | None) -> bool:
        trainer = Trainer(linear(), Dropped(), Points(), settings(), private=mechanism)
        first, second = (trainer.examples(1, np.arange(4)).loss for _ in range(2))
        return torch.equal(first, second)

    assert is_repeated(None)
    assert is_repeated(private(plan()))
    assert not is_repeated(private(replace(plan(), rng="secure")))


def test_scalar_parameter_trains_and_is_saved() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.sum(1, keepdim=True)

    model = Scaled()
    assert trained(model=model, steps=100, config=settings(max_grad_norm=1.0)).weights == pytest.approx([2], abs=0.3)


def test_loss_of_nan_is_noticed_before_it_is_evaluated_or_saved(tmp_path: Any) -> None:
    class Breaking(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            loss = super().losses(model, batch, rng).loss
            return PerExample(loss * float("nan") if rng.step == 3 else loss)

    config = settings(log_every=0, checkpoint_every=2)
    with pytest.raises(PrivLMError, match=r"not finite at step 3: lower trainer\.learning_rate"):
        trained(Breaking(), config=config, save=CheckpointStore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_base_class_asks_for_losses_alone() -> None:
    with pytest.raises(TypeError, match="losses"):
        Objective()  # type: ignore[abstract]
