"""The mechanism's checks of itself: silent about a right one, and each broken one named."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import release
from torch import Tensor, nn

from privlm.config import PrivacyConfig, TrainerConfig, defaults
from privlm.privacy import clipping
from privlm.privacy.clipping.gradients import RowUpdates
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import Draw, ReproducibleNoise
from privlm.privacy.plan import make_plan
from privlm.privacy.sampling import PoissonSampler
from privlm.privacy.watch import MechanismError, ReleaseCheck, ReleaseEvidence, SamplingCheck
from privlm.training.objective import ExampleRandom, Objective, PerExample
from privlm.training.trainer import Private, Trainer

N, BATCH, STEPS = 512, 32, 200
RATE = BATCH / N


def shuffled(step: int) -> np.ndarray:
    epoch, position = divmod(step, N // BATCH)
    return np.random.default_rng(epoch).permutation(N)[BATCH * position :][:BATCH]


def shuffled_with_random_sizes(step: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(N)
    ends = np.cumsum(np.random.default_rng(1).binomial(N, RATE, size=STEPS + 1)) % N
    first, last = ends[step], ends[step + 1]
    return order[first:last] if first <= last else np.concatenate([order[first:], order[:last]])


BROKEN_SAMPLERS = {
    "shuffled batches": (shuffled, "fixed size|too seldom"),
    "shuffled batches of random size": (shuffled_with_random_sizes, "too seldom, as in shuffled batches"),
    "fixed batch size": (lambda step: np.random.default_rng(step).choice(N, BATCH, replace=False), "fixed size"),
    "one batch for ever": (lambda step: np.arange(BATCH), "too often|fixed size"),
    "one seed for all steps": (lambda step: PoissonSampler(N, RATE, seed=0).indices(0), "too often"),
    "some records in every batch": (
        lambda step: np.union1d(PoissonSampler(N, RATE, seed=0).indices(step), np.arange(BATCH // 4)),
        "too often|not drawn at that rate",
    ),
    "other rate": (lambda step: PoissonSampler(N, 1.3 * RATE, seed=0).indices(step), "not drawn at that rate"),
}


def see_batches(batch: Callable[[int], np.ndarray], num_examples: int, rate: float, steps: int) -> None:
    check = SamplingCheck(num_examples, rate)
    for step in range(steps):
        check.see(batch(step))


@pytest.mark.parametrize(("batch", "message"), BROKEN_SAMPLERS.values(), ids=BROKEN_SAMPLERS)
def test_sampling_that_is_not_poisson_is_named(batch: Callable[[int], np.ndarray], message: str) -> None:
    with pytest.raises(MechanismError, match=f"sampling: .*({message})"):
        see_batches(batch, N, RATE, STEPS)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.5, 1.0])
def test_poisson_sampling_raises_no_alarm(rate: float) -> None:
    for seed in range(20):
        see_batches(PoissonSampler(200, rate, seed).indices, 200, rate, steps=100)


def test_chance_of_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where alarms are frequent enough to be counted, they are no more frequent than claimed."""
    monkeypatch.setattr("privlm.privacy.watch.ALPHA", 0.15)  # of each of three checks
    alarms = 0
    for seed in range(200):
        try:
            see_batches(PoissonSampler(100, 0.1, seed).indices, 100, 0.1, steps=30)
        except MechanismError:
            alarms += 1
    assert alarms < 200 * 3 * 0.15


def engine_of(num_values: int = 600) -> PrivacyEngine:
    torch.manual_seed(0)
    return PrivacyEngine(nn.Linear(num_values, 1, bias=False), clipping_norm=0.5)


class Scaled(ReproducibleNoise):
    def __init__(self, scale: float) -> None:
        super().__init__(0)
        self.scale = scale

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        return (self.scale * z for z in super().sample(draw, rank, device))


class OncePerMicroBatch(ReproducibleNoise):
    """Noise of four micro-batches, divided by their number: half of what one draw would be."""

    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        drawn = [super(OncePerMicroBatch, self).sample(replace(draw, step=10 + n), rank, device) for n in range(4)]
        return (torch.stack(parts).mean(0) for parts in zip(*drawn, strict=True))


class OneSeedForAllSteps(ReproducibleNoise):
    def sample(self, draw: Draw, rank: int, device: torch.device) -> Iterator[Tensor]:
        return super().sample(replace(draw, step=0), rank, device)


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.7, 1.4])
def test_noise_of_a_wrong_scale_is_named(scale: float) -> None:
    engine = engine_of()
    with pytest.raises(MechanismError, match=r"noise: process 0 of 1 adds \S+ times its share"):
        release(engine, noise=Scaled(scale))
    assert engine.model.weight.grad is None


def test_noise_per_micro_batch_is_named() -> None:
    with pytest.raises(MechanismError, match=r"noise: process 0 of 1 adds 0\.5\d* times its share"):
        release(engine_of(), noise=OncePerMicroBatch(0))


@pytest.mark.parametrize("num_values", [60, 600])
def test_repeated_noise_is_named(num_values: int) -> None:
    engine = engine_of(num_values)
    release(engine, noise=OneSeedForAllSteps(0), step=0)
    with pytest.raises(MechanismError, match="repeats the noise of the release before"):
        release(engine, noise=OneSeedForAllSteps(0), step=1)


@pytest.mark.parametrize("style", ["flat", "per_layer", "automatic"])
def test_clipping_that_is_off_is_named(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clipping.STYLES, style, lambda norm_LB, clipping_norm: torch.ones_like(norm_LB))
    engine = PrivacyEngine(nn.Linear(20, 1), clipping_norm=0.5, clipping=style)
    engine.backward(lambda model, x: 100 * model(x).sum(1), torch.ones(4, 20))
    with pytest.raises(MechanismError, match="clipping: the sum of 4 clipped contributions on rank 0 has norm"):
        release(engine)


def test_embedding_left_out_of_the_norm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowUpdates, "squared_norms", lambda rows: torch.zeros(len(rows.ids_BT)))
    torch.manual_seed(0)
    table, head = nn.Embedding(10, 4), nn.Linear(4, 1, bias=False)
    nn.init.normal_(table.weight, std=0.01)  # so that the gradient of the head is the smaller one
    engine = PrivacyEngine(nn.Sequential(table, head), clipping_norm=0.5)
    engine.backward(lambda model, ids: 100 * model(ids).sum((1, 2)), torch.tensor([[1, 2], [1, 3], [1, 4]]))
    with pytest.raises(MechanismError, match="clipping: the sum of 3 clipped contributions on rank 0 has norm"):
        release(engine)


def evidence(**changes: float) -> ReleaseEvidence:
    right = ReleaseEvidence(1, 0.3, -0.2, squared_noise=1000, correlation=0.5, clipped_sum=1.9, num_units=4)
    return right._replace(**changes)


def see(*ranks: ReleaseEvidence) -> None:
    ReleaseCheck(clipping_norm=0.5).see(0, ranks, num_noise_values=1000)


def test_noise_on_one_process_only_is_named() -> None:
    see(evidence(), evidence(first_noise=0.1))
    with pytest.raises(MechanismError, match="process 1 of 2 adds 0 times its share"):
        see(evidence(), evidence(first_noise=0.0, second_noise=0.0, squared_noise=0.0))
    with pytest.raises(MechanismError, match=r"process 0 of 2 adds 1\.41 times its share"):
        see(evidence(squared_noise=2000), evidence(squared_noise=0.0))


def test_what_ranks_must_not_share() -> None:
    with pytest.raises(MechanismError, match="share one noise generator"):
        see(evidence(), evidence())
    with pytest.raises(MechanismError, match="one rank number"):
        see(evidence(num_writers=2), evidence(num_writers=0))


def test_sum_that_is_not_finite_is_refused() -> None:
    with pytest.raises(MechanismError, match="clipping"):
        see(evidence(clipped_sum=float("nan")))


def test_release_without_records_has_no_sum() -> None:
    see(evidence(num_units=0, clipped_sum=0.0))
    with pytest.raises(MechanismError, match="clipping"):
        see(evidence(num_units=0, clipped_sum=0.1))


class Shuffled(PoissonSampler):
    def indices(self, step: int) -> np.ndarray:
        return np.sort(shuffled(step - 1))


class Records:
    lengths = None

    def __len__(self) -> int:
        return N

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": torch.ones(len(indices), 3)}


class Means(Objective):
    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: ExampleRandom) -> PerExample:
        return PerExample(model(batch["x"]).mean(1))


@pytest.mark.parametrize("sampler", [PoissonSampler, Shuffled])
def test_training_stops_where_batches_are_shuffled(sampler: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privlm.training.private.PoissonSampler", sampler)
    config = defaults(TrainerConfig, "trainer", "single", optimizer="sgd", learning_rate=0.1, batch_size=BATCH)
    privacy = defaults(PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, rng="reproducible")
    plan = make_plan(privacy, dataset_size=N, batch_size=BATCH, steps=30)
    trainer = Trainer(nn.Linear(3, 2), Means(), Records(), config, private=Private(plan, Ledger()))
    if sampler is PoissonSampler:
        assert trainer.run(30).steps == 30
    else:
        with pytest.raises(MechanismError, match="too seldom, as in shuffled batches"):
            trainer.run(30)
