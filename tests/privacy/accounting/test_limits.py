"""The most steps and the largest batch of a budget: the inverse of the noise that was calibrated for them."""

from fractions import Fraction

import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import ACCOUNTANTS, Segment, epsilon, largest_batch_size, most_steps, noise_multiplier

pytestmark = pytest.mark.torch_free

N, BATCH, STEPS, DELTA = 67_349, 1000, 203, 0.5 / 67_349


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_round_trip(accountant):
    setting = {"target_epsilon": 3.0, "delta": DELTA, "accountant": accountant}
    sigma = noise_multiplier(sampling_rate=BATCH / N, steps=STEPS, **setting).noise_multiplier
    steps = most_steps(sampling_rate=BATCH / N, noise_multiplier=sigma, **setting)
    batch = largest_batch_size(dataset_size=N, steps=STEPS, noise_multiplier=sigma, **setting)
    assert abs(steps.value - STEPS) <= 1
    assert abs(batch.value - BATCH) <= 1
    for limit in (steps, batch):
        assert 3.0 - 0.02 <= limit.achieved.epsilon <= 3.0
        assert limit.achieved.guarantee == (accountant in ("pld", "rdp"))
        assert limit.to_dict()[limit.name] == limit.value
    one_more = Segment(BATCH / N, sigma, steps.value + 1)
    assert epsilon([one_more], DELTA, accountant=accountant).epsilon > 3.0 - 1e-3


def test_epochs_keep_the_passes_over_the_data():
    limit = largest_batch_size(
        target_epsilon=3.0, delta=DELTA, dataset_size=N, epochs=Fraction(3), noise_multiplier=0.77
    )
    [segment] = limit.achieved.segments
    assert segment.sampling_rate == limit.value / N
    assert segment.steps == -(-3 * N // limit.value)
    assert limit.achieved.epsilon <= 3.0
    assert abs(limit.value - BATCH) < 150  # at noise 0.7618 it is 1000


def test_the_whole_data_set_may_fit():
    limit = largest_batch_size(target_epsilon=8.0, delta=1e-5, dataset_size=50, steps=1, noise_multiplier=10.0)
    assert limit.value == 50
    assert limit.achieved.segments == (Segment(1.0, 10.0, 1),)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampling_rate": 0.1, "noise_multiplier": 0.1, "target_epsilon": 1.0}, "steps 1 costs more than 1"),
        ({"sampling_rate": 0.0, "noise_multiplier": 1.0, "target_epsilon": 1.0}, "10000000 steps and more"),
        ({"sampling_rate": 0.1, "noise_multiplier": 1.0, "target_epsilon": 0.0}, "must be positive"),
    ],
)
def test_no_such_number_of_steps(setting, message):
    with pytest.raises(UsageError, match=message):
        most_steps(delta=1e-5, **setting)


def test_one_length_of_the_run():
    with pytest.raises(ValueError, match="either steps or epochs"):
        largest_batch_size(target_epsilon=1.0, delta=1e-5, dataset_size=100, noise_multiplier=1.0)
