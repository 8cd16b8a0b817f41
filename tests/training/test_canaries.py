"""Canaries in the real Trainer and engine, on a linear model over fixed features."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from privlm.config import PrivacyConfig, TrainerConfig, defaults
from privlm.data.encoding import EncodedSplit
from privlm.data.features import FeatureSplit
from privlm.errors import UsageError
from privlm.privacy import clipping
from privlm.privacy.audit.one_run import IN, OUT, epsilon_lower_bound, guess
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import make_plan
from privlm.training.canaries import MODULE, NUMBER, PlantedData, make_canaries
from privlm.training.checkpoint import CheckpointStore
from privlm.training.classification import Classification
from privlm.training.trainer import Monitor, Private, Trainer

N, BATCH, STEPS, NUM_CANARIES, DELTA = 4131, 256, 160, 1000, 1e-5


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features):
        return self.linear(features)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(N, 64, generator=generator), dim=-1)
    return FeatureSplit(features, (features[:, 0] > 0).long().numpy())


@pytest.fixture(scope="module")
def plan():
    privacy = defaults(PrivacyConfig, "privacy", "dp_sgd", epsilon=1.0, rng="reproducible")
    return make_plan(privacy, dataset_size=N, batch_size=BATCH, steps=STEPS)


def trainer_config(**changes):
    settings = {"batch_size": BATCH, "micro_batch_size": 1024, "optimizer": "sgd", "learning_rate": 4.0} | changes
    return defaults(TrainerConfig, "trainer", "single", **settings)


def canaries_for(folder, kind="dirac", **changes):
    privacy = defaults(PrivacyConfig, "privacy", "dp_sgd", audit={"canaries": kind, **changes})
    return make_canaries(privacy.audit, clipping_norm=1.0, folder=folder)


def read(folder):
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    return np.array(scores), np.array(json.loads((folder / "coins.json").read_text())["is_in"])


def audited_bound(folder, data, plan, seed, *, noise=1.0):
    """The lower bound of one audited run whose noise is `noise` times the planned one."""
    private = Private(replace(plan, noise_multiplier=noise * plan.noise_multiplier), Ledger())
    canaries = canaries_for(folder, seed=seed)
    Trainer(Head(), Classification(), data, trainer_config(), seed=seed, private=private, canaries=canaries).run(STEPS)
    scores, is_in = read(folder)
    guesses = guess(scores, 100, 100, np.random.default_rng(seed))
    correct = int(((guesses == IN) & is_in).sum() + ((guesses == OUT) & ~is_in).sum())
    return epsilon_lower_bound(NUM_CANARIES, 200, correct, delta=DELTA)


@pytest.mark.medium
def test_right_engine_stays_below_its_claim(tmp_path, data, plan):
    assert all(audited_bound(tmp_path / str(seed), data, plan, seed) <= 1 for seed in range(4))


@pytest.mark.medium
def test_a_tenth_of_the_noise_is_found(tmp_path, data, plan):
    assert all(audited_bound(tmp_path / str(seed), data, plan, seed, noise=0.1) > 1 for seed in range(3))


@pytest.mark.medium
def test_missing_clipping_is_found(tmp_path, data, plan, monkeypatch):
    monkeypatch.setitem(clipping.STYLES, "flat", lambda norm_LB, clipping_norm: torch.ones_like(norm_LB))
    assert all(audited_bound(tmp_path / str(seed), data, plan, seed) > 1 for seed in range(3))


@pytest.mark.slow
def test_a_hundred_seeds(tmp_path, data, plan):
    right = [audited_bound(tmp_path / f"right{seed}", data, plan, seed) for seed in range(100)]
    wrong = [audited_bound(tmp_path / f"wrong{seed}", data, plan, seed, noise=0.1) for seed in range(20)]
    assert sum(bound <= 1 for bound in right) >= 95
    assert all(bound > 1 for bound in wrong)


def test_dirac_scores_are_the_sums_of_the_released_gradients(tmp_path, data, plan):
    """Without noise: how often a canary was drawn, times C over the batch size, and 0 for those that are out."""
    silent = Private(replace(plan, noise_multiplier=0.0, target_epsilon=None), Ledger())
    model = Head()
    Trainer(
        model, Classification(), data, trainer_config(), private=silent, canaries=canaries_for(tmp_path / "audit")
    ).run(3)
    scores, is_in = read(tmp_path / "audit")
    draws = scores * BATCH
    assert draws == pytest.approx(np.round(draws), abs=1e-4)
    assert (draws[~is_in] == 0).all()
    assert draws[is_in].mean() == pytest.approx(3 * BATCH / N, rel=0.3)
    assert not hasattr(model, MODULE)


def test_an_audited_run_resumes_with_its_scores(tmp_path, data, plan):
    def run(folder, *steps):
        for number in steps:
            Trainer(
                Head(),
                Classification(),
                data,
                trainer_config(checkpoint_every=2),
                private=Private(plan, Ledger(folder / "ledger.jsonl")),
                canaries=canaries_for(folder / "audit"),
                monitor=Monitor(save=CheckpointStore(folder / "checkpoints")),
            ).run(number)
        return read(folder / "audit")

    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole, halves = run(tmp_path / "whole", 6), run(tmp_path / "halves", 4, 6)
    assert (whole[0] == halves[0]).all()
    assert (whole[1] == halves[1]).all()


def test_coins_have_a_seed_of_their_own_and_canaries_do_not(tmp_path, data):
    first, second = canaries_for(None, seed=1), canaries_for(None, seed=2)
    for canaries in (first, second):
        canaries.plant(Head(), data, Classification().losses)
    assert (first.records_m == second.records_m).all()
    assert 400 < (first.coins_m != second.coins_m).sum() < 600
    assert not (tmp_path / "coins.json").exists()


def test_mislabelled_canaries_are_memorised_without_privacy(tmp_path, data):
    few = FeatureSplit(data.features[:80], data.labels[:80])  # so few that 64 weights can fit them all
    canaries = canaries_for(tmp_path / "audit", "mislabel", num_canaries=40, guesses_in=10, guesses_out=10)
    config = trainer_config(batch_size=80, micro_batch_size=80, learning_rate=10.0)
    Trainer(Head(), Classification(), few, config, canaries=canaries).run(300)
    scores, is_in = read(tmp_path / "audit")
    assert (scores[is_in] > 0).all()
    assert (scores[~is_in] > 0).mean() < 0.6


class DroppingHead(Head):
    def forward(self, features):
        return self.linear(nn.functional.dropout(features + 1, 0.5, self.training))


def test_canaries_are_scored_without_dropout(data):
    canaries, model = canaries_for(None, "mislabel"), DroppingHead()
    nn.init.ones_(model.linear.weight[0])
    canaries.plant(model, data, Classification().losses)
    assert (canaries.losses_of_canaries(model) == canaries.initial_losses_m).all()
    assert model.training


def test_mislabelled_records_have_another_label_and_the_rest_their_own(data):
    canaries = canaries_for(None, "mislabel")
    planted, _ = canaries.plant(Head(), data, Classification().losses)
    everything = np.arange(N)
    changed = (planted.batch(everything)["labels"] != data.batch(everything)["labels"]).numpy()
    assert sorted(everything[changed]) == sorted(canaries.records_m)


def encoded(num_examples):
    rng = np.random.default_rng(0)
    input_ids = [np.concatenate([[1], rng.integers(10, 90, rng.integers(4, 9)), [2]]) for _ in range(num_examples)]
    lengths = np.array([len(ids) for ids in input_ids])
    return EncodedSplit(input_ids, None, rng.integers(0, 2, num_examples), lengths, 0, pad_token_id=0)


def test_random_tokens_replace_all_but_the_ends_in_any_batch():
    split = encoded(60)
    canaries = canaries_for(None, "random_tokens", num_canaries=20, guesses_in=1, guesses_out=1)
    planted = PlantedData(split, records_m := np.arange(5, 25), _disguise(canaries, split, records_m))
    before, after = split.batch(np.arange(60)), planted.batch(np.arange(60))
    assert (after["attention_mask"] == before["attention_mask"]).all()
    for row, (old, new) in enumerate(zip(before["input_ids"], after["input_ids"], strict=True)):
        length = split.lengths[row]
        assert (old[[0, length - 1]] == new[[0, length - 1]]).all()
        assert (old[length:] == new[length:]).all()
        assert bool((old != new).any()) == (row in records_m)
        alone = planted.batch(np.array([row]))["input_ids"][0]
        assert (alone == new[:length]).all()
    assert after[NUMBER].tolist() == [20] * 5 + list(range(20)) + [20] * 35


def _disguise(canaries, split, records_m):
    canaries.records_m = records_m
    return canaries.disguise(split)


def test_canaries_that_the_data_cannot_hold_are_refused(data):
    losses = Classification().losses
    with pytest.raises(UsageError, match="num_canaries=3000"):
        canaries_for(None, num_canaries=3000).plant(Head(), data, losses)
    with pytest.raises(UsageError, match="random_tokens needs token ids"):
        canaries_for(None, "random_tokens").plant(Head(), data, losses)
    one_class = FeatureSplit(data.features, np.zeros(N, dtype=np.int64))
    with pytest.raises(UsageError, match="two or more classes"):
        canaries_for(None, "mislabel").plant(Head(), one_class, losses)
