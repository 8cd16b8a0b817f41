"""Reparametrized gradients: the identities of the factors, equality with SGD at full rank, exact resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import assert_agrees
from torch import Tensor, nn

from privlm.config import PrivacyConfig, TrainerConfig, defaults
from privlm.errors import UsageError
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import make_plan
from privlm.privacy.rgp import Reparametrization, ReparametrizedLinear
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import ExampleRandom, Objective, PerExample
from privlm.training.trainer import Monitor, Private, Trainer

P, D, N = 5, 8, 40


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, P), nn.Tanh(), nn.Linear(P, P), nn.LayerNorm(P))


def reparametrized(rank: int, *, moved: bool = False) -> nn.Sequential:
    model = dense()
    for name in ("0", "2"):
        layer = ReparametrizedLinear(model.get_submodule(name), rank, power_iterations=1)
        model.set_submodule(name, layer)
        if moved:
            layer.weight.data += 0.1 * torch.randn(layer.weight.shape)
    Reparametrization(model).choose_factors(seed=0, step=1)
    return model


class Records:
    lengths = None

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(N, 3, D, generator=generator)
        self.target = torch.randn(N, 3, P, generator=generator)

    def __len__(self) -> int:
        return N

    def batch(self, indices: Any) -> dict[str, Tensor]:
        return {"x": self.x[indices], "target": self.target[indices]}


class Squares(Objective):
    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        return PerExample(square_losses(model, batch))


def square_losses(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch["x"]) - batch["target"]).square().flatten(1).sum(1)


def train(model: nn.Module, steps: int, *, privately: bool = False, save: Path | None = None, **changes: Any) -> Tensor:
    """The weights after training, in the order of the dense model."""
    config = defaults(
        TrainerConfig, "trainer", "single", **({"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 10} | changes)
    )
    private = None
    if privately:
        privacy = defaults(PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, rng="reproducible")
        plan = make_plan(privacy, dataset_size=N, batch_size=10, steps=8)
        private = Private(plan, Ledger(save / "ledger.jsonl" if save else None))
    store = CheckpointStore(save / "checkpoints") if save else None
    Trainer(model, Squares(), Records(), config, private=private, monitor=Monitor(save=store)).run(steps)
    return torch.cat([value.flatten() for name, value in sorted(model.state_dict().items())])


@pytest.mark.parametrize("training", [True, False])
def test_computes_what_the_layer_computes(training: bool) -> None:
    x = Records().x
    torch.testing.assert_close(reparametrized(2).train(training)(x), dense()(x))


def test_factors_get_projections_of_the_gradient_and_inputs_get_theirs() -> None:
    model, reference, records = reparametrized(2), dense(), Records()
    for each in (model, reference):
        square_losses(each, vars(records)).sum().backward()
    for name in ("0", "2"):
        layer, gradient = model.get_submodule(name), reference.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.left.weight.grad, gradient @ layer.right.weight.T)
        torch.testing.assert_close(layer.right.weight.grad, layer.left.weight.T @ gradient)
        torch.testing.assert_close(layer.bias.grad, reference.get_submodule(name).bias.grad)
    torch.testing.assert_close(model[3].weight.grad, reference[3].weight.grad)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_direction_is_the_gradient_projected_on_the_factors(rank: int, moved: bool) -> None:
    layer = reparametrized(rank, moved=moved)[0]
    gradient = torch.randn(P, D)
    layer.left.weight.grad = gradient @ layer.right.weight.T
    layer.right.weight.grad = layer.left.weight.T @ gradient
    layer.take_gradient()
    on_left = layer.left.weight @ layer.left.weight.T
    on_right = layer.right.weight.T @ layer.right.weight
    rest = (torch.eye(P) - on_left) @ gradient @ (torch.eye(D) - on_right)
    torch.testing.assert_close(layer.weight.grad, gradient - rest)
    assert layer.left.weight.grad is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_full_rank_without_noise_and_clipping_is_the_ordinary_step(optimizer: str) -> None:
    ordinary = train(dense(), 5, optimizer=optimizer)
    torch.testing.assert_close(train(reparametrized(P), 5, optimizer=optimizer), ordinary, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(train(reparametrized(1), 5, optimizer=optimizer), ordinary, rtol=1e-4, atol=1e-5)


def test_factors_follow_the_way_of_the_weight() -> None:
    layer = ReparametrizedLinear(nn.Linear(D, P), rank=1, power_iterations=20)
    drift = torch.outer(torch.arange(1.0, P + 1), torch.arange(1.0, D + 1))
    layer.weight.data += drift
    layer.choose_factors(np.random.default_rng(0))
    cosine = layer.left.weight.T @ drift @ layer.right.weight.T / drift.norm()
    assert abs(cosine.item()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("drift", ["none", "one_row", "rank_one"])
@pytest.mark.parametrize("rank", [1, 3, P])
def test_factors_are_orthonormal_whatever_the_rank_of_the_way(drift: str, rank: int) -> None:
    layer = ReparametrizedLinear(nn.Linear(D, P), rank, power_iterations=2)
    if drift == "one_row":
        layer.weight.data[0, 0] += 1e-30
    if drift == "rank_one":
        layer.weight.data += 0.1
    layer.choose_factors(np.random.default_rng(0))
    torch.testing.assert_close(layer.left.weight.T @ layer.left.weight, torch.eye(rank), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.right.weight @ layer.right.weight.T, torch.eye(rank), rtol=0, atol=1e-5)


def test_clipping_covers_factors_biases_and_norms_together() -> None:
    assert_agrees(reparametrized(2), square_losses, Records().batch(slice(8)))


@pytest.mark.parametrize("privately", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_training_equals_the_uninterrupted_one(privately: bool, optimizer: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"privately": privately, "optimizer": optimizer, "schedule": "constant"}
    whole = train(reparametrized(2), 8, **settings)
    train(reparametrized(2), 3, save=tmp_path, **settings)
    resumed = train(reparametrized(2), 8, save=tmp_path, **settings)
    assert torch.equal(resumed, whole)
    assert whole.isfinite().all()


def test_saved_state_is_that_of_the_plain_model() -> None:
    model = reparametrized(2, moved=True)
    assert model.state_dict().keys() == dense().state_dict().keys()
    plain = dense()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(Records().x), model(Records().x))
    model.load_state_dict(dense().state_dict())


def test_penalty_that_cannot_reach_the_weights_is_refused() -> None:
    class Pulled(Squares):
        def penalty(self, model: nn.Module) -> Tensor:
            return sum(parameter.square().sum() for parameter in model.parameters())  # type: ignore[return-value]

    config = defaults(TrainerConfig, "trainer", "single")
    with pytest.raises(UsageError, match="adapter=rgp trains weights that the penalty of Pulled"):
        Trainer(reparametrized(1), Pulled(), Records(), config)


@pytest.mark.parametrize("rank", [0, P + 1])
def test_impossible_rank(rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        ReparametrizedLinear(nn.Linear(D, P), rank, power_iterations=1)
