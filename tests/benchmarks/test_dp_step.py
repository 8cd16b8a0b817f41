"""The benchmark of private steps: its engines give one sum, and ours costs little more than an ordinary step."""

import importlib
import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.medium

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def dp_step():
    if not BENCHMARKS.is_dir():
        pytest.skip("not a checkout: no folder benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("dp_step")


def test_a_private_step_costs_little_more(dp_step):
    workload = dp_step.Workload("tiny", "dense", batch_size=64, num_tokens=64)
    batch = workload.batch()
    engines = [engine(workload.build(), 64) for engine in (dp_step.NonPrivate, dp_step.PrivLM)]
    seconds = []
    for _ in range(6):
        row = []
        for engine in engines:
            start = time.process_time()
            engine.micro_step(batch)
            row.append(time.process_time() - start)
            engine.release()
        seconds.append(row)
    ordinary, private = np.array(seconds[1:]).T  # the first warms up
    assert np.median(private / ordinary) < 1.6  # 1.3 on a quiet machine


@pytest.mark.parametrize("training", ["dense", "lora"])
@pytest.mark.parametrize("peer", ["opacus ghost", "opacus hooks"])
def test_peers_give_the_same_clipped_sum(dp_step, peer, training):
    if importlib.util.find_spec("opacus") is None:
        pytest.skip("opacus is not installed (extra peers)")
    workload = dp_step.Workload("tiny", training, batch_size=4, num_tokens=8)
    sums = []
    for name in ("privlm", peer):
        engine = dp_step.PRIVATE_ENGINES[name](workload.build(), 4)
        engine.micro_step(workload.batch())
        sums.append(engine.clipped_sum())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-5)
