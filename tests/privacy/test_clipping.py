"""Every clipping rule against one backward pass per record."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from privlm.privacy import clipping
from privlm.privacy.clipping import gradients

B = 6


def square_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model(batch["x"])
    return (output - batch["target"]).square().flatten(1).sum(1)


def square_batch(*input_shape: int, output_features: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(B, *input_shape)
    return {"x": x, "target": 3 * torch.randn(B, *input_shape[:-1], output_features)}


@pytest.mark.parametrize("positions", [(), (5,), (40,), (2, 3)], ids=["2d", "3d_gram", "3d_instantiated", "4d"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(positions: tuple[int, ...], bias: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 12, bias=bias), nn.Tanh(), nn.Linear(12, 4, bias=bias))
    assert_agrees(model, square_losses, square_batch(*positions, 8, output_features=4))


@pytest.mark.parametrize("positions", [(), (5,), (40,)])
def test_conv1d(positions: tuple[int, ...]) -> None:
    model = nn.Sequential(Conv1D(12, 8), nn.Tanh(), Conv1D(4, 12))
    assert_agrees(model, square_losses, square_batch(*positions, 8, output_features=4))


@pytest.mark.parametrize("normalized_shape", [8, (3, 8)])
def test_layer_norm(normalized_shape: int | tuple[int, int]) -> None:
    model = nn.Sequential(nn.LayerNorm(normalized_shape), nn.Linear(8, 4))
    nn.init.normal_(model[0].weight)
    assert_agrees(model, square_losses, square_batch(5, 3, 8, output_features=4))


@pytest.mark.parametrize("normalized_shape", [8, (3, 8)])
@pytest.mark.parametrize("eps", [None, 0.1])
def test_rms_norm(normalized_shape: int | tuple[int, int], eps: float | None) -> None:
    model = nn.Sequential(nn.RMSNorm(normalized_shape, eps=eps), nn.Linear(8, 4))
    nn.init.normal_(model[0].weight)
    assert_agrees(model, square_losses, square_batch(5, 3, 8, output_features=4))


@pytest.mark.parametrize("norm", [LlamaRMSNorm, T5LayerNorm])
def test_rms_norm_of_transformers_has_a_rule_of_its_own(norm: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(norm(8), nn.Linear(8, 4))
    nn.init.normal_(model[0].weight)
    assert not clipping.is_general(clipping.rule_of(model[0], "weight"))
    assert_agrees(model, square_losses, square_batch(5, 8, output_features=4))


def test_what_only_looks_like_an_rms_norm_is_differentiated() -> None:
    class Centred(LlamaRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(-1, keepdim=True))

    assert clipping.is_general(clipping.rule_of(Centred(8), "weight"))
    assert_agrees(Centred(8), square_losses, square_batch(5, 8, output_features=8))


@pytest.mark.parametrize("num_groups", [1, 2, 6])
@pytest.mark.parametrize("pixels", [(5,), (4, 3)])
def test_group_norm(num_groups: int, pixels: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.GroupNorm(num_groups, 6), nn.Tanh(), nn.GroupNorm(2, 6))
    nn.init.normal_(model[0].weight)
    torch.manual_seed(1)
    assert_agrees(model, square_losses, {"x": torch.randn(B, 6, *pixels), "target": 3 * torch.randn(B, 6, *pixels)})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "padding": 1, "stride": 2},
        {"dilation": 2, "padding": (2, 0)},
        {"groups": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_conv2d(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 2), **options), nn.Tanh(), nn.Conv2d(6, 2, 1))
    x = torch.randn(B, 4, 9, 8)
    assert_agrees(model, square_losses, {"x": x, "target": 3 * torch.randn(model(x).shape)})


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x).tanh()


@pytest.mark.parametrize(
    "layer",
    [Scaled(8, 8), nn.PReLU(3), nn.Conv1d(3, 3, 5, padding=2), nn.BatchNorm1d(3).eval()],
    ids=lambda layer: type(layer).__name__,
)
def test_layer_without_a_rule_is_differentiated_record_by_record(layer: nn.Module) -> None:
    assert clipping.is_general(clipping.rule_of(layer, "weight"))
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4))
    assert_agrees(model, square_losses, square_batch(3, 8, output_features=4))


def test_gradient_of_a_layer_without_a_rule_keeps_no_graph() -> None:
    layer = Scaled(8, 8)
    gradient = clipping.rule_of(layer, "weight")(layer, torch.randn(3, 8), torch.randn(3, 8))
    assert isinstance(gradient, gradients.Instantiated)
    assert not gradient.gradient_Bs.requires_grad


def test_layer_without_a_rule_called_twice() -> None:
    layer = nn.PReLU(3)
    assert_agrees(nn.Sequential(layer, nn.Linear(8, 8), layer), square_losses, square_batch(3, 8, output_features=8))


def test_layer_norm_without_bias_and_positions() -> None:
    assert_agrees(nn.LayerNorm(8, bias=False), square_losses, square_batch(8, output_features=8))


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("ids_shape", [(B, 7), (B,), (B, 2, 3)])
def test_embedding_with_repeated_ids(padding_idx: int | None, ids_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(5, 4, padding_idx=padding_idx)
    batch = {"x": torch.randint(0, 5, ids_shape), "target": torch.randn(*ids_shape, 4)}
    assert_agrees(model, square_losses, batch)


def test_padding_row_of_an_embedding_gets_no_gradient() -> None:
    table = nn.Embedding(3, 2, padding_idx=0)
    part = clipping.rule_of(table, "weight")(table, torch.tensor([[0, 1]]), torch.ones(1, 2, 2))
    total = torch.zeros(3, 2)
    clipping.accumulate([part], total, torch.ones(1))
    assert total.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_layer_called_twice_in_one_forward_pass() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.shared(self.norm(self.shared(x)).tanh()))

    assert_agrees(Twice(), square_losses, square_batch(3, 8, output_features=8))


def test_parameter_shared_by_two_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert_agrees(model, square_losses, square_batch(3, 8, output_features=8))


@pytest.mark.parametrize("vocabulary", [6, 300], ids=["instantiable", "large"])
def test_output_layer_tied_to_the_embedding(vocabulary: int) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(vocabulary, 8, padding_idx=0)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, vocabulary, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.table(ids)).tanh())

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]).mT, batch["x"].roll(1, 1), reduction="none").mean(1)

    torch.manual_seed(0)
    model = Tied()
    # Long gradients through both uses, or the cross term would not matter.
    nn.init.normal_(model.table.weight)
    assert_agrees(model, losses, {"x": torch.randint(0, vocabulary, (B, 9))})


def test_frozen_parameters_have_no_part_in_the_norm() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    assert_agrees(model, square_losses, square_batch(3, 8, output_features=4))


def test_a_layer_that_is_not_used_counts_as_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(8, 4)
            self.unused = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x)

    assert_agrees(Unused(), square_losses, square_batch(8, output_features=4))


def test_model_may_change_the_output_of_its_first_layer_in_place() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)
    )
    assert_agrees(model, square_losses, square_batch(3, 8, output_features=4))


def test_the_smaller_form_is_chosen() -> None:
    thin = gradients.OuterProducts(torch.randn(2, 4, 16), torch.randn(2, 4, 16))
    assert gradients.merge([thin]) == [thin]
    long = gradients.OuterProducts(torch.randn(2, 64, 16), torch.randn(2, 64, 16))
    (instantiated,) = gradients.merge([long])
    assert isinstance(instantiated, gradients.Instantiated)
    torch.testing.assert_close(instantiated.squared_norms(), long.squared_norms(clipping.Grams()))


@pytest.mark.parametrize("style", sorted(clipping.STYLES))
def test_no_style_lets_a_norm_exceed_the_bound(style: str) -> None:
    norm_LB = torch.tensor([[0.0, 1e-6, 0.3, 0.5, 0.7, 1e4, 1e18], [0.0, 1e4, 0.3, 0.0, 0.1, 1e4, 1e18]])
    factor_LB = clipping.STYLES[style](norm_LB, 0.5)
    assert ((factor_LB * norm_LB).norm(dim=0) <= 0.5 * (1 + 1e-6)).all()


def test_styles() -> None:
    norm_1B = torch.tensor([[0.25, 1.0, 4.0]])
    assert clipping.STYLES["flat"](norm_1B, 1.0).tolist() == [[1.0, 1.0, 0.25]]
    assert clipping.STYLES["per_layer"](norm_1B, 1.0).tolist() == [[1.0, 1.0, 0.25]]
    torch.testing.assert_close(clipping.STYLES["automatic"](norm_1B, 1.0), 1 / (norm_1B + 0.01))


def test_each_layer_has_its_share_of_the_bound() -> None:
    norm_LB = torch.tensor([[0.25], [2.0], [1.0], [0.0]])
    assert clipping.STYLES["per_layer"](norm_LB, 1.0).tolist() == [[1.0], [0.25], [0.5], [1.0]]
    assert clipping.STYLES["flat"](norm_LB, 1.0).unique().numel() == 1


@pytest.mark.parametrize("option", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_embedding_options_that_mix_records_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(clipping.NoRuleError, match="influence each other"):
        clipping.rule_of(nn.Embedding(3, 2, **option), "weight")


@pytest.mark.parametrize(
    "parts",
    [
        [gradients.OuterProducts(torch.ones(2, 1, 3), torch.ones(2, 1, 4))],
        [gradients.RowUpdates(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, 4))],
        [gradients.Instantiated(torch.ones(2, 3, 4))],
        [
            gradients.OuterProducts(torch.ones(2, 1, 3), torch.ones(2, 1, 4)),
            gradients.RowUpdates(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, 4)),
        ],
    ],
    ids=["outer", "rows", "instantiated", "tied"],
)
def test_a_first_sum_does_not_read_the_memory_it_is_written_to(parts: list[clipping.PerRecordGradient]) -> None:
    weight_B = torch.tensor([1.0, 2.0])
    first, added = torch.full((3, 4), torch.nan), torch.zeros(3, 4)
    clipping.accumulate(parts, first, weight_B, is_first=True)
    clipping.accumulate(parts, added, weight_B)
    assert added[0].tolist() == [3.0 * len(parts)] * 4
    assert torch.equal(first, added)
    clipping.accumulate(parts, first, weight_B)
    assert torch.equal(first, 2 * added)


def test_layers_that_read_one_input_share_its_products_of_positions():
    x_BTn, other_BTn = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    grams = clipping.Grams()
    first = grams.of(x_BTn)
    assert grams.of(x_BTn.view(3, 4, 5)) is first
    for changed in (other_BTn, x_BTn[:2], x_BTn.transpose(0, 1)):
        ((times, gram),) = grams.of(changed)
        assert times == 1
        torch.testing.assert_close(gram, changed @ changed.mT)


@pytest.mark.parametrize("num_positions", [1, 64, 65, 128, 301])
def test_norms_from_blocks_are_those_of_the_gradients(num_positions):
    left_BTm, right_BTn = torch.randn(2, num_positions, 7), torch.randn(2, num_positions, 5)
    found = gradients.OuterProducts(left_BTm, right_BTn).squared_norms(clipping.Grams())
    torch.testing.assert_close(found, (left_BTm.mT @ right_BTn).square().sum((1, 2)), rtol=1e-4, atol=1e-3)
