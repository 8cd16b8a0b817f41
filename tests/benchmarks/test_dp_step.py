"""The benchmark of private steps: its engines give one sum, and ours needs one pass forward and one backward."""

import importlib
import importlib.util
from pathlib import Path

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


def test_a_private_step_runs_the_model_once_and_differentiates_once(dp_step, monkeypatch):
    workload = dp_step.Workload("tiny", "dense", batch_size=4, num_tokens=8, vocabulary=100)
    model = workload.build()
    engine = dp_step.PrivLM(model, 4)
    engine.micro_step(workload.batch())  # the first one also looks for records that depend on each other
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append("forward"))
    differentiate = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *inputs, **options: calls.append("grad") or differentiate(*inputs, **options)
    )
    engine.micro_step(workload.batch())
    assert calls == ["forward", "grad"]


@pytest.mark.parametrize("training", ["dense", "lora"])
@pytest.mark.parametrize("model", ["tiny", "gpt2-shape", "llama-shape"])
@pytest.mark.parametrize("peer", ["opacus ghost", "opacus hooks"])
def test_peers_give_the_same_clipped_sum(dp_step, peer, model, training):
    if importlib.util.find_spec("opacus") is None:
        pytest.skip("opacus is not installed (extra peers)")
    workload = dp_step.Workload(model, training, batch_size=4, num_tokens=8, vocabulary=100)
    sums = []
    for name in ("privlm", peer):
        engine = dp_step.PRIVATE_ENGINES[name](workload.build(), 4)
        engine.micro_step(workload.batch())
        sums.append(engine.sample())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-5)
