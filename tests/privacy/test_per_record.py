"""What no exact rule covers: differentiated once per record, from the smallest place that was seen to be right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from naive import assert_agrees, clipped_sums
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from privlm.privacy import clipping
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.inspection import UnsupportedModuleError

WIDTH, VOCABULARY = 6, 12

Batch = dict[str, Tensor]


def numbers(num_records: int, num_positions: int) -> Batch:
    generator = torch.Generator().manual_seed(num_records)
    return {"x": torch.randn(num_records, num_positions, WIDTH, generator=generator)}


def tokens(num_records: int, num_positions: int) -> Batch:
    generator = torch.Generator().manual_seed(num_records)
    return {"x": torch.randint(0, VOCABULARY, (num_records, num_positions), generator=generator)}


def squares(model: nn.Module, batch: Batch) -> Tensor:
    """Different targets for different positions, so that no gradient vanishes by symmetry."""
    output = model(batch["x"]).flatten(1)
    return (output - torch.linspace(-2, 1, output.shape[1])).square().sum(1)


SHAPES = (5, 4), (5, 4), (5, 4), (3, 6), (1, 4), (2, 5)
"""The first two are learned from; a single record; positions that divide by records."""


def assert_agrees_in_all_shapes(model: nn.Module, make: Callable[[int, int], Batch] = numbers) -> dict[str, str]:
    """The engine's ways."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return assert_agrees(model, squares, *(make(*shape) for shape in SHAPES)).ways()


class Calls(nn.Module):
    """A layer between two others, called by `use`."""

    def __init__(
        self, inner: nn.Module, use: Callable[[nn.Module, Tensor], Tensor] = lambda inner, x: inner(x)
    ) -> None:
        super().__init__()
        self.before, self.inner, self.after, self.use = nn.Linear(WIDTH, WIDTH), inner, nn.Linear(WIDTH, 2), use

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.use(self.inner, self.before(x).tanh()).tanh())


class Scale(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return 3 * output


def scaled_by_accelerate() -> nn.Module:
    return add_hook_to_module(nn.Linear(WIDTH, WIDTH), Scale())


def scaled_by_a_hook() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_hook(lambda module, args, output: 3 * output)
    return layer


def shifted_by_a_hook() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return layer


def with_its_own_forward() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x).tanh()  # type: ignore[method-assign]
    return layer


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


def parametrized() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    nn.utils.parametrize.register_parametrization(layer, "weight", Squared())
    return layer


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "layer",
    [
        scaled_by_accelerate,
        scaled_by_a_hook,
        shifted_by_a_hook,
        with_its_own_forward,
        parametrized,
        lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
        lambda: Doubled(WIDTH, WIDTH),
    ],
    ids=["accelerate", "hook", "pre_hook", "own_forward", "parametrized", "weight_norm", "old_weight_norm", "subclass"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_layer_whose_output_is_not_what_its_class_computes(layer: Callable[[], nn.Module]) -> None:
    assert_agrees_in_all_shapes(Calls(layer()))


@pytest.mark.parametrize("prepend", [False, True])
def test_hooks_registered_after_attaching_belong_to_what_is_around_the_layer(prepend: bool) -> None:
    model = Calls(nn.Linear(WIDTH, WIDTH))
    engine = PrivacyEngine(model, clipping_norm=1.0)
    model.inner.register_forward_hook(lambda module, args, output: 3 * output, prepend=prepend)
    model.inner.register_forward_pre_hook(lambda module, args: (args[0] + 1,), prepend=prepend)
    (statistics,), _ = clipped_sums(engine, squares, numbers(5, 4))
    engine.detach()
    again = PrivacyEngine(model, clipping_norm=1.0)
    (expected,), _ = clipped_sums(again, squares, numbers(5, 4))
    again.detach()
    torch.testing.assert_close(statistics.norms, expected.norms, rtol=1e-5, atol=0)
    assert_agrees(model, squares, numbers(5, 4))


class Bare(nn.Module):
    """Parameters beside children, of which one is a scalar."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(1, 1, WIDTH))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.layer, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.layer(x)], 1)
        return self.dropout(x * self.scale)


class Several(nn.Module):
    """Two tensors beside something else, from a call with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, *, power: float) -> tuple[Tensor, str, dict[str, Tensor]]:
        return x * self.weight, "name", {"other": (x + self.weight) ** power}


class Repeated(nn.Module):
    """Its second call reads what its first returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bare()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


def both(inner: nn.Module, x: Tensor) -> Tensor:
    a, _, rest = inner(x, power=2.0)
    return a + rest["other"]


@pytest.mark.parametrize(
    ("inner", "use", "way"),
    [
        (Bare(), lambda inner, x: inner(x), "Bare"),
        (Several(), both, "Several"),
        (nn.Bilinear(WIDTH, WIDTH, WIDTH), lambda inner, x: inner(x, x.tanh()), "Bilinear"),
        (nn.PReLU(4), lambda inner, x: inner(x), None),
        (Repeated(), lambda inner, x: inner(x), "Repeated"),
        (nn.Linear(WIDTH, WIDTH), lambda inner, x: inner(x) + F.linear(x, inner.weight), "losses"),
        (nn.Linear(WIDTH, WIDTH), lambda inner, x: checkpoint(inner, input=x, use_reentrant=False), None),
        (Bare(), lambda inner, x: checkpoint(inner, x, use_reentrant=False), "Bare"),
    ],
    ids=["bare", "tuple", "two_inputs", "one_input", "called_twice", "outside", "keyword", "checkpointed"],
)
def test_begins_at_the_smallest_place_that_is_right(inner: nn.Module, use: Any, way: str | None) -> None:
    if isinstance(inner, nn.PReLU):
        ways = assert_agrees(Calls(inner, use), squares, *[numbers(n, 4) for n in (5, 5, 3)]).ways()
        assert set(ways.values()) == {"torch.func"}
        return
    ways = assert_agrees_in_all_shapes(Calls(inner, use))
    assert set(ways.values()) == ({way} if way else set())


def test_chance_inside_is_the_chance_of_the_pass_itself() -> None:
    model, batch = Calls(Bare(dropout=0.5)).train(), numbers(5, 4)
    engine = PrivacyEngine(model, clipping_norm=1e6)
    for step in range(3):
        torch.manual_seed(step)
        _, sums = clipped_sums(engine, squares, batch, step=step)
        sums = [total.clone() for total in sums]
        torch.manual_seed(step)
        expected = torch.autograd.grad(squares(model, batch).sum(), list(model.parameters()))
        for total, gradient in zip(sums, expected, strict=True):
            torch.testing.assert_close(total, gradient, rtol=1e-4, atol=1e-4)
    assert set(engine.ways().values()) == {"Bare"}


class Table(nn.Module):
    """Tokens and a table of positions, asked in one of several ways."""

    def __init__(self, ask: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens, self.positions, self.ask = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(16, WIDTH), ask
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.ask(self.positions, self.tokens(ids))
        return self.head(self.body(x).tanh())


def _ids(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


def in_place(positions: nn.Module, x: Tensor) -> Tensor:
    x = x * 1
    x += positions(_ids(x)[None])
    return x


CHEAP = {
    "row": lambda positions, x: x + positions(_ids(x)[None]),
    "row_first": lambda positions, x: positions(_ids(x)[None]).to(x.device) + x,
    "in_place": in_place,
    "repeated": lambda positions, x: torch.cat([positions(_ids(x)[None]).repeat(len(x), 1, 1), x], 1),
    "expanded": lambda positions, x: x * positions(_ids(x)[None]).expand(len(x), -1, -1),
}
DEAR = {
    "no_row": lambda positions, x: x * positions(_ids(x)),
    "first_of_one_row": lambda positions, x: x + positions(_ids(x)[None])[0],
    "product": lambda positions, x: x * positions(_ids(x)[None]).sin(),
    "sum": lambda positions, x: x + positions(_ids(x)[None]).sum(0),
    "pairs": lambda positions, x: x + positions((_ids(x)[:, None] - _ids(x)).abs()).sum(1),
    "single": lambda positions, x: x + positions(torch.tensor([3])),
    "single_number": lambda positions, x: x * positions(torch.tensor(3)),
}


@pytest.mark.parametrize("ask", [*CHEAP.values(), *DEAR.values()], ids=[*CHEAP, *DEAR])
def test_a_table_that_all_records_share(ask: Any) -> None:
    model = Table(ask)
    torch.manual_seed(0)
    shapes = (5, 4), (5, 4), (3, 6), (1, 4), (2, 5)
    ways = assert_agrees(model, squares, *(tokens(*shape) for shape in shapes)).ways()
    assert ways == ({} if ask in CHEAP.values() else {"positions": "losses"})


class Rows(nn.Module):
    """Positions as rows of one matrix: those of a record together, or those of a position; or all in one record."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.layer, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        size, length, _ = x.shape
        if self.order == "by_position":
            return (
                self.head(self.norm(self.layer(x.transpose(0, 1).flatten(0, 1))).tanh())
                .view(length, size, -1)
                .transpose(0, 1)
            )
        rows = x.flatten(0, 1)[None] if self.order == "packed" else x.flatten(0, 1)
        return self.head(self.norm(self.layer(rows)).tanh()).view(size, length, -1)


@pytest.mark.parametrize(("order", "is_cheap"), [("by_record", True), ("by_position", False), ("packed", False)])
def test_rows_that_are_positions(order: str, is_cheap: bool) -> None:
    ways = assert_agrees_in_all_shapes(Rows(order))
    assert set(ways.values()) == (set() if is_cheap else {"losses"})


class ByPosition(nn.Module):
    """Rows of one position stand together, [T * B, d], behind a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.scale).transpose(0, 1).flatten(0, 1)


def test_what_was_right_for_single_positions_is_not_taken_for_right_for_several() -> None:
    shapes = (5, 1), (5, 1), (5, 1), (5, 4), (5, 4), (3, 6)
    assert_agrees(Rows("by_position"), squares, *(numbers(*shape) for shape in shapes))

    def use(inner: nn.Module, x: Tensor) -> Tensor:
        return inner(x).view(x.shape[1], len(x), -1).transpose(0, 1)

    engine = assert_agrees(Calls(ByPosition(), use), squares, *(numbers(*shape) for shape in shapes))
    assert set(engine.ways().values()) == {"losses"}


class Scaled(nn.Embedding):
    def __init__(self, has_scale: bool) -> None:
        super().__init__(VOCABULARY, WIDTH, padding_idx=0)
        self.embed_scale = 4.0
        if not has_scale:
            del self.embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 4.0


@pytest.mark.parametrize("has_scale", [True, False])
def test_a_scaled_table_tied_to_the_output_layer(has_scale: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = Scaled(has_scale), nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids).tanh())

    model = Tied()
    ways = assert_agrees(model, squares, *(tokens(*shape) for shape in ((5, 4), (5, 4), (3, 6)))).ways()
    assert ways == ({} if has_scale else {"table.weight": "torch.func"})


class Changes(nn.Module):
    """Adds to an input of its layer after the call."""

    def __init__(self, how: Callable[[Tensor, Tensor], None], bias_only: bool = False) -> None:
        super().__init__()
        self.how, self.layer, self.head = how, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.layer.weight.requires_grad_(not bias_only)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.layer(x)
        self.how(x, y.detach())
        return self.head(y.tanh())


@pytest.mark.parametrize(
    "how",
    [lambda x, y: x.add_(y), lambda x, y: x[:, 0].zero_(), lambda x, y: x.detach().mul_(2)],
    ids=["itself", "a_view", "a_detached_copy_of_the_view"],
)
def test_an_input_that_changes_after_its_use_is_refused(how: Any) -> None:
    engine = PrivacyEngine(Changes(how), clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match="layer: its input is changed in place after its use"):
        clipped_sums(engine, squares, numbers(5, 4))


def test_a_bias_needs_no_input() -> None:
    assert_agrees(Changes(lambda x, y: x.add_(y), bias_only=True), squares, numbers(5, 4))


def test_shared_rows_that_change_in_place_are_refused() -> None:
    def ask(positions: nn.Module, x: Tensor) -> Tensor:
        shared = positions(_ids(x)[None])
        shared.mul_(2)
        return x + shared

    engine = PrivacyEngine(Table(ask), clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match="positions: what all records share is changed in place"):
        clipped_sums(engine, squares, tokens(5, 4))


def test_a_record_without_a_finite_gradient_must_not_reach_others() -> None:
    poisoned = numbers(5, 4)
    poisoned["x"][1, 0, 0] = torch.nan
    engine = PrivacyEngine(Calls(nn.PReLU(4)), clipping_norm=1.0)
    for step, batch in enumerate([numbers(5, 4), poisoned]):
        (statistics,), _ = clipped_sums(engine, squares, batch, step=step)
    assert statistics.norms.isfinite().tolist() == [True, False, True, True, True]

    engine = PrivacyEngine(Calls(Bare()), clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match="inner: a record's gradient is not finite"):
        clipped_sums(engine, squares, poisoned)


def test_a_place_that_is_right_in_some_batches_only_is_left_in_the_others() -> None:
    class Moody(nn.Module):
        """For short records its parameter is used outside its own module, too."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Bare()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y * self.inner.scale if x.shape[1] < 5 else y

    engine = assert_agrees(Calls(Moody()), squares, *(numbers(5, length) for length in (6, 6, 6, 4, 6)))
    assert set(engine.ways().values()) <= {"Bare", "Moody"}


def test_an_ordinary_model_takes_one_backward_pass_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Table(CHEAP["row"])
    engine = PrivacyEngine(model, clipping_norm=1.0)
    clipped_sums(engine, squares, tokens(5, 4))
    passes = []
    differentiate = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *inputs, **options: passes.append(options) or differentiate(*inputs, **options)
    )
    clipped_sums(engine, squares, tokens(7, 5), step=1)
    assert [options["retain_graph"] for options in passes] == [False]


def test_what_hides_the_calls_of_layers_is_refused() -> None:
    def compiled(model: nn.Sequential) -> None:
        model[0]._compiled_call_impl = model[0].forward  # as compile() does

    def hooked(model: nn.Sequential) -> None:
        model[0].weight.register_hook(lambda gradient: 2 * gradient)

    for spoil, message in ((compiled, "0: torch.compile"), (hooked, "0.weight: a hook changes its gradient")):
        model = nn.Sequential(nn.Linear(WIDTH, 2))
        engine = PrivacyEngine(model, clipping_norm=1.0)
        spoil(model)
        with pytest.raises(UnsupportedModuleError, match=message):
            engine.backward(squares, numbers(5, 4))
    with pytest.raises(UnsupportedModuleError, match="DataParallel runs layers where no hook sees them"):
        PrivacyEngine(nn.DataParallel(nn.Linear(WIDTH, 2)), clipping_norm=1.0)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: 2 * output)
    try:
        with pytest.raises(UnsupportedModuleError, match="a hook on all modules"):
            PrivacyEngine(nn.Linear(WIDTH, 2), clipping_norm=1.0)
    finally:
        handle.remove()


def test_a_forward_function_that_is_replaced_later_is_refused() -> None:
    model = Calls(nn.Linear(WIDTH, WIDTH))
    engine = PrivacyEngine(model, clipping_norm=1.0)
    add_hook_to_module(model.inner, Scale())
    with pytest.raises(UnsupportedModuleError, match="inner: its forward function was replaced"):
        clipped_sums(engine, squares, numbers(5, 4))


def test_a_hook_that_comes_during_the_forward_pass_is_refused() -> None:
    def use(inner: nn.Module, x: Tensor) -> Tensor:
        inner.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        return inner(x)

    engine = PrivacyEngine(Calls(nn.Linear(WIDTH, WIDTH), use), clipping_norm=1.0)
    with pytest.raises(UnsupportedModuleError, match="inner: a hook was registered during the forward pass"):
        clipped_sums(engine, squares, numbers(5, 4))


def test_no_error_shows_numbers_of_the_model() -> None:
    table = nn.Embedding(VOCABULARY, WIDTH)
    part = clipping.rule_of(table, "weight")(table, torch.zeros(2, 3, dtype=torch.long), torch.randn(2, 3, WIDTH))
    with pytest.raises(AssertionError) as caught:
        clipping.squared_norms([part] * 3)  # as no merge leaves them
    assert "tensor" not in str(caught.value)
