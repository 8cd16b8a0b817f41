"""Half precision and deterministic algorithms: what they promise, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.regression import Squares, plan, private, settings, trained
from torch import nn

from privlm.errors import PrivLMError, UsageError
from privlm.training import accelerator
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import ExampleRandom, PerExample

CPU_ONLY = pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")


@CPU_ONLY
def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"precision=fp16 needs a CUDA GPU: use trainer\.precision=bf16 or fp32"):
        trained(config=settings(precision="fp16"))


def scaled(**options: Any) -> Accelerator:
    """A CPU that scales its losses, as a GPU does in half precision; powers of two change no gradient."""
    made = Accelerator(cpu=True)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4, **options)
    return made


def test_scaled_losses_give_the_same_steps() -> None:
    plain = trained(steps=6, config=settings(max_grad_norm=0.5))
    run = trained(steps=6, config=settings(max_grad_norm=0.5), accelerator=scaled())
    assert run.weights == plain.weights
    assert [row["loss"] for row in run.train] == [row["loss"] for row in plain.train]
    assert [row["gradient_norm"] for row in run.train] == [row["gradient_norm"] for row in plain.train]
    assert [row["loss_scale"] for row in run.train] == [2.0**10] * 3 + [2.0**11] * 3


class Overflowing(Squares):
    """A gradient that is infinite at step 2 though the loss is not, as in half precision."""

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        loss = super().losses(model, batch, rng).loss
        if rng.step == 2:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return PerExample(loss)


def test_step_whose_gradient_overflows_is_left_out_and_the_scale_lowered() -> None:
    one, two = (trained(Overflowing(), steps=steps, accelerator=scaled()) for steps in (1, 2))
    assert two.weights == one.weights
    assert two.train[-1]["loss_scale"] == 2.0**9


def test_scale_survives_a_resume(tmp_path: Path) -> None:
    whole = trained(steps=7, accelerator=scaled())
    trained(steps=5, accelerator=scaled(), save=CheckpointStore(tmp_path))
    resumed = trained(steps=7, accelerator=scaled(), save=CheckpointStore(tmp_path))
    assert [row["loss_scale"] for row in resumed.train] == [row["loss_scale"] for row in whole.train[5:]]
    assert resumed.weights == whole.weights


def test_half_precision_under_privacy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(UsageError, match=r"fp16 under privacy: losses cannot be scaled .*precision=bf16 or fp32"):
        trained(private=private(plan()))


@pytest.mark.parametrize("privately", [False, True])
def test_bfloat16_trains(privately: bool) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run = trained(config=settings(precision="bf16"), private=private(plan()) if privately else None)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert run.weights != trained(private=private(plan()) if privately else None).weights
    assert run.weights == pytest.approx(trained(private=private(plan()) if privately else None).weights, abs=0.05)


def test_deterministic_algorithms_are_on_in_training_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(accelerator.CUBLAS_WORKSPACE, raising=False)
    seen = []

    class Looking(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
            return super().losses(model, batch, rng)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for wanted in (True, None):
        trained(Looking(), steps=1, config=settings(deterministic=wanted))
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
    assert {seen[0], seen[-1]} == {(True, False), (False, True)}
    monkeypatch.delenv(accelerator.CUBLAS_WORKSPACE)


def test_operation_that_is_never_deterministic_is_named_with_the_remedy() -> None:
    """torch.Tensor.put_ adds up what it puts in one place in any order."""

    class Scattering(Squares):
        def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
            return super().losses(model, batch, rng)

    with pytest.raises(PrivLMError, match=r"trainer\.deterministic=true: put_ .*set trainer\.deterministic=null"):
        trained(Scattering(), config=settings(deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_training_gives_the_same_weights() -> None:
    assert trained(config=settings(deterministic=True)).weights == trained().weights


def test_weights_of_half_precision_are_refused_where_losses_are_scaled() -> None:
    with pytest.raises(UsageError, match=r"precision=fp16 computes in half precision; the weights .*weight is float16"):
        trained(model=nn.Linear(3, 1).half(), accelerator=scaled())
