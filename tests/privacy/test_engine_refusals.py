"""What the engine cannot treat exactly it refuses by name."""

import math

import pytest
import torch
from naive import assert_agrees
from small import losses, small_batch, small_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from privlm.errors import UsageError
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.inspection import UnsupportedModuleError


@pytest.mark.parametrize("clipping_norm", [0.0, -1.0, math.nan, math.inf])
def test_bad_clipping_norm(clipping_norm: float) -> None:
    with pytest.raises(UsageError, match=r"privacy\.clipping_norm"):
        PrivacyEngine(small_model(), clipping_norm=clipping_norm)


def test_bad_style() -> None:
    with pytest.raises(UsageError, match=r"privacy\.clipping .*flat, per_layer, automatic"):
        PrivacyEngine(small_model(), clipping_norm=1.0, clipping="round")


def test_every_unsupported_module_is_named() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "linear": nn.Linear(2, 2),
            "norm": nn.BatchNorm1d(4),
            "recurrent": nn.LSTM(4, 4),
            "bag": nn.Embedding(3, 2, max_norm=1.0),
        }
    )
    with pytest.raises(UnsupportedModuleError) as caught:
        PrivacyEngine(model, clipping_norm=1.0)
    message = str(caught.value)
    for name in ("attention.in_proj_weight", "attention.in_proj_bias", "norm:", "bag.weight"):
        assert name in message
    assert "use Linear layers for q, k, v and o" in message
    assert "recurrent.weight_ih_l0: LSTM hides its steps: use privlm.models.lstm.UnrolledLSTM" in message
    assert "\n  linear" not in message


def test_batch_norm_is_refused_in_train_mode_only() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4)).requires_grad_(False)
    model[0].requires_grad_(True)
    with pytest.raises(UnsupportedModuleError, match="mixes the records"):
        PrivacyEngine(model, clipping_norm=1.0)
    engine = PrivacyEngine(model.eval(), clipping_norm=1.0)
    model.train()
    with pytest.raises(UnsupportedModuleError, match="mixes the records"):
        engine.backward(lambda model, x: model(x).flatten(1).sum(1), torch.randn(2, 4, 6))


def test_sharded_model_is_refused() -> None:
    model = small_model()
    model[0].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})  # as fully_shard does
    with pytest.raises(UnsupportedModuleError, match="0: FSDP leaves no rank with whole layers"):
        PrivacyEngine(model, clipping_norm=1.0)


def test_model_without_trainable_parameters() -> None:
    with pytest.raises(UsageError, match="no trainable parameters"):
        PrivacyEngine(small_model().requires_grad_(False), clipping_norm=1.0)


def test_attaching_twice() -> None:
    model = small_model()
    engine = PrivacyEngine(model, clipping_norm=1.0)
    for again in (model, model[0], nn.Sequential(model)):
        with pytest.raises(UsageError, match="attached to this model already"):
            PrivacyEngine(again, clipping_norm=1.0)
    engine.detach()
    PrivacyEngine(model, clipping_norm=1.0)


def test_parameters_that_change_after_attaching() -> None:
    def add(model: nn.Sequential) -> None:
        model.append(nn.Linear(3, 3))

    def unfreeze(model: nn.Sequential) -> None:
        model[0].requires_grad_(True)

    def freeze(model: nn.Sequential) -> None:
        model[3].requires_grad_(False)

    def replace(model: nn.Sequential) -> None:
        model[3].weight = nn.Parameter(model[3].weight.detach().clone())

    for change, name in ((add, "4.weight"), (unfreeze, "0.weight"), (freeze, "3.bias"), (replace, "3.weight")):
        model = small_model()
        model[0].requires_grad_(False)
        engine = PrivacyEngine(model, clipping_norm=1.0)
        change(model)
        with pytest.raises(UsageError, match=name):
            engine.backward(losses, small_batch(2))


def test_ordinary_backward_is_refused_while_attached() -> None:
    model, batch = small_model(), small_batch(2)
    engine = PrivacyEngine(model, clipping_norm=1.0)
    with pytest.raises(UsageError, match="neither clipped"):
        losses(model, batch).sum().backward()
    assert torch.autograd.grad(model[0].weight.square().sum(), model[0].weight)[0].any()  # a penalty may
    engine.detach()
    losses(model, batch).sum().backward()
    assert model[0].weight.grad.any()


class MeanOfBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x - x.mean(0, keepdim=True)


class PositionTable(nn.Module):
    """Its position ids have no batch dimension: with as many records as positions they look as if they had."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 6)
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.table(torch.arange(x.shape[1])))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class ScaleOfANumber(nn.Module):
    """Its scale is taken of a number that no record has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.scale = Scale()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale(torch.ones(()))


def test_a_scalar_parameter_has_an_exact_rule() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Scale(), nn.Tanh(), nn.Linear(8, 3))
    assert_agrees(model, losses, small_batch(16))


def test_a_scalar_parameter_that_no_record_reaches_by_itself() -> None:
    assert_agrees(ScaleOfANumber(), losses, small_batch(16))


class Offset(nn.Module):
    """A module that no exact rule knows, and that torch.func cannot run record by record."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.bias = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if self.form == "mixing":
            return x + scale * self.bias * x.mean(0, keepdim=True)
        if self.form == "branching":
            return x + self.bias if (x + self.bias).sum() > 0 else x - self.bias
        return x + scale * self.bias


class WithOffset(nn.Module):
    def __init__(self, form: str, **kwargs: float) -> None:
        super().__init__()
        self.offset = Offset(form)
        self.kwargs = kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.offset(x, **self.kwargs)


def test_module_that_mixes_records_is_named() -> None:
    model = WithOffset("mixing")
    engine = PrivacyEngine(model, clipping_norm=1.0)
    message = "offset: its output for a record depends on other records"
    with pytest.raises(UnsupportedModuleError, match=message):
        engine.backward(losses, small_batch(8))


@pytest.mark.parametrize("model", [WithOffset("branching"), WithOffset("plain", scale=2.0)], ids=["branch", "keyword"])
def test_module_that_torch_func_cannot_run_is_differentiated_once_per_record(model: nn.Module) -> None:
    assert set(assert_agrees(model, losses, small_batch(8), small_batch(6)).ways().values()) == {"Offset"}


def test_model_that_mixes_records_is_refused() -> None:
    engine = PrivacyEngine(MeanOfBatch(), clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match="the loss of one record depends on other records of the batch"):
        engine.backward(losses, small_batch(8))


@pytest.mark.parametrize("num_records", [8, 4])
def test_positions_without_a_batch_dimension_as_many_as_records_or_not(num_records: int) -> None:
    assert_agrees(PositionTable(), losses, small_batch(num_records), small_batch(4), small_batch(5))


def test_losses_that_are_none_of_the_model_or_none_of_the_records() -> None:
    model, batch = small_model(), small_batch(2)
    engine = PrivacyEngine(model, clipping_norm=1.0)
    loss_B = losses(model, batch)
    with pytest.raises(ValueError, match="no trained layer ran"):
        engine.backward(lambda model, batch: loss_B, batch)
    with pytest.raises(ValueError, match="one loss per record"):
        engine.backward(lambda model, batch: losses(model, batch).mean(), batch)
