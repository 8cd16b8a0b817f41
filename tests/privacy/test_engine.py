"""What the engine guarantees beyond the clipping rules: one noise per step, refusals, a model that stays itself."""

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive import clipped_sums, naive, release
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from privlm.errors import UsageError
from privlm.privacy.checks import MechanismError
from privlm.privacy.engine import PrivacyEngine, World
from privlm.privacy.inspection import UnsupportedModuleError
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import ReproducibleNoise, SecureNoise

Batch = dict[str, Tensor]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def small_batch(num_records: int = 64) -> Batch:
    torch.manual_seed(1)
    return {"x": torch.randn(num_records, 4, 6), "label": torch.randint(0, 3, (num_records,))}


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["x"]).mean(1), batch["label"], reduction="none")


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# The logical step


@pytest.mark.parametrize("micro_batch_size", [1, 7, 32])
def test_micro_batch_size_does_not_change_the_sum(micro_batch_size: int) -> None:
    model, batch = small_model(), small_batch()
    engine = PrivacyEngine(model, clipping_norm=0.3)
    clipped_sums(engine, losses, batch, micro_batch_size)
    _, expected = naive(model, losses, batch, 0.3)
    torch.testing.assert_close(
        gradients(model).double(), torch.cat([x.flatten() for x in expected]), rtol=1e-5, atol=1e-6
    )


def test_sum_is_divided_by_the_expected_batch_size() -> None:
    model, batch = small_model(), small_batch(5)
    engine = PrivacyEngine(model, clipping_norm=0.3)
    clipped_sums(engine, losses, batch)
    total = gradients(model)
    with engine.recording():
        engine.backward(losses(model, batch))
    release(engine, step=1, noise_multiplier=0.0, expected_batch_size=12.8)
    torch.testing.assert_close(gradients(model), total / 12.8)


def test_statistics_count_clipped_records() -> None:
    model, batch = small_model(), small_batch()
    norm_B, _ = naive(model, losses, batch, 1.0)
    engine = PrivacyEngine(model, clipping_norm=0.3)
    (statistics,), _ = clipped_sums(engine, losses, batch)
    assert statistics.num_clipped == int((norm_B > 0.3).sum()) > 0
    assert statistics.num_nonfinite == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_record_without_a_finite_gradient_contributes_nothing(poison: float) -> None:
    model, batch = small_model(), small_batch(8)
    clean = {name: value[1:] for name, value in batch.items()}
    clipped_sums(PrivacyEngine(model, clipping_norm=0.3), losses, clean)
    expected, other = gradients(model), small_model()
    batch["x"][0, 0, 0] = poison
    (statistics,), _ = clipped_sums(PrivacyEngine(other, clipping_norm=0.3), losses, batch)
    assert statistics.num_nonfinite == 1
    torch.testing.assert_close(gradients(other), expected)


def test_clipping_is_float32_inside_bfloat16_autocast() -> None:
    model, batch = small_model(), small_batch(8)
    engine = PrivacyEngine(model, clipping_norm=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16), engine.recording():
        statistics = engine.backward(losses(model, batch))
    release(engine, noise_multiplier=0.0)
    assert statistics.norms.dtype == torch.float32
    assert gradients(model).norm() <= 8e-3 * (1 + 1e-5)  # in bfloat16 the factors alone would be off by 4e-3
    norm_B, _ = naive(model, losses, batch, 1.0)
    torch.testing.assert_close(statistics.norms.double(), norm_B, rtol=0.05, atol=0)


def test_half_precision_parameters_get_gradients_of_their_type() -> None:
    model, batch = small_model().bfloat16(), small_batch(8)
    batch["x"] = batch["x"].bfloat16()
    engine = PrivacyEngine(model, clipping_norm=1.0)
    clipped_sums(engine, losses, batch)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_per_layer_clipping_bounds_every_layer() -> None:
    model, batch = small_model(), small_batch(8)
    engine = PrivacyEngine(model, clipping_norm=1e-3, clipping="per_layer")
    (statistics,), sums = clipped_sums(engine, losses, {name: value[:1] for name, value in batch.items()})
    assert statistics.num_clipped == 1
    for weight, bias in zip(sums[::2], sums[1::2], strict=True):
        length = torch.cat([weight.flatten(), bias]).norm()
        torch.testing.assert_close(float(length), 1e-3 / math.sqrt(3), rtol=1e-5, atol=0)


def test_activation_checkpointing_gives_the_same_sum() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([small_model() for _ in range(2)])
            self.between = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.between(checkpoint(self.blocks[0], x, use_reentrant=False))
            return checkpoint(self.blocks[1], x, use_reentrant=False)

    model, batch = Checkpointed(), small_batch(8)
    norm_B, expected = naive(model, losses, batch, 0.3)
    (statistics,), sums = clipped_sums(PrivacyEngine(model, clipping_norm=0.3), losses, batch)
    torch.testing.assert_close(statistics.norms.double(), norm_B, rtol=1e-5, atol=0)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-5, atol=1e-6)


# Noise


def wide_model() -> nn.Linear:
    return nn.Linear(1000, 1000, bias=False)


def test_empty_batch_releases_pure_noise_and_is_accounted() -> None:
    model, ledger = wide_model(), Ledger()
    engine = PrivacyEngine(model, clipping_norm=0.5)
    release(engine, noise_multiplier=1.5, expected_batch_size=10.0, ledger=ledger)
    assert gradients(model).std() == pytest.approx(1.5 * 0.5 / 10, rel=5e-3)
    assert [segment.steps for segment in ledger.segments()] == [1]


def simulate(size: int, work: Callable[[World], None]) -> list[BaseException]:
    """Runs `work` once per rank, in threads that meet in all_reduce."""
    barrier, shared, errors = threading.Barrier(size, timeout=60), {}, []

    def all_reduce(rank: int, tensor: Tensor) -> None:
        shared[rank] = tensor.clone()
        barrier.wait()
        tensor.copy_(torch.stack([shared[other] for other in range(size)]).sum(0))
        barrier.wait()

    def run(rank: int) -> None:
        try:
            work(World(rank, size, lambda tensor: all_reduce(rank, tensor)))
        except MechanismError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("source", ["reproducible", "secure"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_noise_variance_does_not_depend_on_the_number_of_ranks(size: int, source: str) -> None:
    models = [wide_model() for _ in range(size)]
    ledger = Ledger()

    def work(world: World) -> None:
        engine = PrivacyEngine(models[world.rank], clipping_norm=0.5)
        noise = ReproducibleNoise(7) if source == "reproducible" else SecureNoise()
        release(engine, noise=noise, noise_multiplier=2.0, world=world, ledger=ledger if world.rank == 0 else None)

    assert not simulate(size, work)
    assert gradients(models[0]).var() == pytest.approx(1.0, rel=0.01)  # (sigma C)^2, 10^6 numbers
    assert all(torch.equal(gradients(model), gradients(models[0])) for model in models)
    assert [segment.steps for segment in ledger.segments()] == [1]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_give_the_clipped_sum_of_one(size: int) -> None:
    batch, alone = small_batch(31), small_model()
    clipped_sums(PrivacyEngine(alone, clipping_norm=0.3), losses, batch)
    models = [small_model() for _ in range(size)]

    def work(world: World) -> None:
        engine = PrivacyEngine(models[world.rank], clipping_norm=0.3)
        if world.rank > 0:  # rank 0 has no records and still takes part
            with engine.recording():
                engine.backward(
                    losses(engine.model, {name: value[world.rank - 1 :: size - 1] for name, value in batch.items()})
                )
        release(engine, noise_multiplier=0.0, world=world, ledger=Ledger() if world.rank == 0 else None)

    assert not simulate(size, work)
    for model in models:
        torch.testing.assert_close(gradients(model), gradients(alone), rtol=1e-5, atol=1e-6)


class SameOnEveryRank(ReproducibleNoise):
    def sample(self, shape: Any, *, step: int, rank: int, index: int, device: Any) -> Tensor:
        return super().sample(shape, step=step, rank=0, index=index, device=device)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_share_a_generator_are_refused(size: int) -> None:
    def work(world: World) -> None:
        engine = PrivacyEngine(small_model(), clipping_norm=1.0)
        release(engine, noise=SameOnEveryRank(0), world=world, ledger=Ledger())

    assert len(simulate(size, work)) == size


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_all_call_themselves_rank_0_are_refused(size: int) -> None:
    def work(world: World) -> None:
        engine = PrivacyEngine(small_model(), clipping_norm=1.0)
        release(engine, world=World(0, size, world.all_reduce), ledger=Ledger())

    assert len(simulate(size, work)) == size


def test_noise_cannot_be_added_twice() -> None:
    engine = PrivacyEngine(small_model(), clipping_norm=1.0)
    release(engine, step=3)
    for step in (3, 2):
        with pytest.raises(ValueError, match="noise is added once per step"):
            release(engine, step=step)
    release(engine, step=4)


def test_no_noise_without_an_account() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="needs a ledger"):
        release(PrivacyEngine(model, clipping_norm=1.0), ledger=None)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_ledger_that_cannot_be_written_stops_the_release() -> None:
    class FullDisk(Ledger):
        def record(self, *args: Any) -> None:
            raise OSError("No space left on device")

    model = small_model()
    with pytest.raises(OSError, match="No space"):
        release(PrivacyEngine(model, clipping_norm=1.0), ledger=FullDisk())
    assert all(parameter.grad is None for parameter in model.parameters())


# Refusals


@pytest.mark.parametrize("clipping_norm", [0.0, -1.0, math.nan, math.inf])
def test_bad_clipping_norm(clipping_norm: float) -> None:
    with pytest.raises(UsageError, match=r"privacy\.clipping_norm"):
        PrivacyEngine(small_model(), clipping_norm=clipping_norm)


def test_bad_style() -> None:
    with pytest.raises(UsageError, match=r"privacy\.clipping .*flat, per_layer, automatic"):
        PrivacyEngine(small_model(), clipping_norm=1.0, clipping="round")


def test_every_unsupported_module_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "linear": nn.Linear(2, 2),
            "norm": nn.BatchNorm1d(4),
            "recurrent": nn.LSTM(4, 4),
            "bilinear": nn.Bilinear(2, 2, 2),
            "bare": Bare(),
        }
    )
    with pytest.raises(UnsupportedModuleError) as caught:
        PrivacyEngine(model, clipping_norm=1.0)
    message = str(caught.value)
    for name in ("attention.in_proj_weight", "attention.in_proj_bias", "norm:", "bilinear.weight", "bare.scale"):
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
    with pytest.raises(UnsupportedModuleError, match="mixes the records"), engine.recording():
        pass


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
        with pytest.raises(UsageError, match=name), engine.recording():
            pass


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


class BareUse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(x, self.layer.weight)


class PositionTable(nn.Module):
    """Its position ids have no batch dimension: with as many records as positions they look as if they had."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 6)
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.table(torch.arange(x.shape[1])))


class Offset(nn.Module):
    """A module that no exact rule knows, in one of several unsuitable forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.bias = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor | tuple[Tensor, Tensor]:
        if self.form == "random":
            return x + scale * self.bias * torch.rand_like(x)
        if self.form == "mixing":
            return x + scale * self.bias * x.mean(0, keepdim=True)
        if self.form == "branching":
            return x + self.bias if (x + self.bias).sum() > 0 else x - self.bias
        return x + self.bias, self.bias


class WithOffset(nn.Module):
    def __init__(self, form: str, **kwargs: float) -> None:
        super().__init__()
        self.offset = Offset(form)
        self.kwargs = kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.offset(x, **self.kwargs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WithOffset("random"), "offset: its output for a record depends on other records or on chance"),
        (WithOffset("mixing"), "offset: its output for a record depends on other records or on chance"),
        (WithOffset("branching"), "offset: cannot be differentiated record by record"),
        (WithOffset("tuple"), "offset: returns more than one tensor"),
        (WithOffset("random", scale=2.0), "offset: is called with more than its one input, or by keyword"),
    ],
    ids=lambda value: value.offset.form if isinstance(value, WithOffset) else "",
)
def test_module_that_the_general_rule_cannot_treat_is_named(model: nn.Module, message: str) -> None:
    engine = PrivacyEngine(model, clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match=message), engine.recording():
        engine.backward(losses(model, small_batch(8)))


@pytest.mark.parametrize(
    ("model", "num_records", "message"),
    [
        (MeanOfBatch(), 8, "layer: the loss of one record depends on the rows of others"),
        (BareUse(), 8, "layer.weight: used outside the forward call"),
        (PositionTable(), 8, "table: its input has 4 rows where the batch has 8 records"),
        (PositionTable(), 4, "table: the loss of one record depends on the rows of others"),
    ],
    ids=["mixes_records", "bare_use", "no_batch_dimension", "no_batch_dimension_in_disguise"],
)
def test_what_only_a_forward_pass_shows(model: nn.Module, num_records: int, message: str) -> None:
    engine = PrivacyEngine(model, clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match=message), engine.recording():
        engine.backward(losses(model, small_batch(num_records)))


def test_backward_without_a_recorded_forward_pass() -> None:
    model, batch = small_model(), small_batch(2)
    engine = PrivacyEngine(model, clipping_norm=1.0)
    loss_B = losses(model, batch)
    with pytest.raises(ValueError, match="inside recording"):
        engine.backward(loss_B)
    with engine.recording(), pytest.raises(ValueError, match="one loss per record"):
        engine.backward(losses(model, batch).mean())


# The model stays itself


def test_model_is_as_before_after_a_failure_and_after_detach() -> None:
    model, batch = small_model(), small_batch(4)
    expected = losses(model, batch)
    engine = PrivacyEngine(model, clipping_norm=1.0)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), engine.recording():
        model(torch.zeros(2, 7))
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(losses(model, batch), expected, rtol=0, atol=0)
    engine.detach()
    duplicate = copy.deepcopy(model)
    losses(duplicate, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in duplicate.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
