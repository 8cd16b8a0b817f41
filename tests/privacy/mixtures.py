"""Ways in which the records of a batch come to know of each other, each with what makes it hard to see.

A way is (model, losses, batch of 12 records); `losses` are large, so that every record is clipped and a mixture that
nobody sees moves the clipped sum by several clipping norms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Tensor]
Mix = Callable[[Tensor], Tensor]
Way = tuple[nn.Module, Callable[[nn.Module, Batch], Tensor], Batch]
SIZE, WIDTH, CLASSES = 12, 5, 3


class Mixing(nn.Module):
    """Adds to each record's features what `mix` makes of all of them."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.below, self.head, self.mix = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES), mix

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.below(x))
        return self.head(h + self.mix(h))


class Backward(torch.autograd.Function):
    """Gives its input back; its gradient is that of all records together."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + 5 * ctx.saved_tensors[0].abs().mean())


class BackwardSum(Backward):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient + gradient.sum(0)


def _pairs(h: Tensor) -> Tensor:
    positions = torch.arange(len(h)) ^ 1
    return h[positions.clamp(max=len(h) - 1)]


def _odd_only(h: Tensor) -> Tensor:
    odd = (torch.arange(len(h)) % 2 == 1)[:, None]
    return torch.where(odd, h[1::2].sum(0), 0.0)


def _rank(h: Tensor) -> Tensor:
    return h[:, 0].argsort().argsort().float()[:, None].expand_as(h)


def _nearest(h: Tensor) -> Tensor:
    distance_BB = torch.cdist(h, h) + 1e6 * torch.eye(len(h))
    return 4 * h[distance_BB.argmin(1)].detach()


def _shuffled(h: Tensor) -> Tensor:
    return 4 * h[torch.randperm(len(h))]


def _hooked(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient + 4 * gradient.mean(0))
    return 0 * h


def _straight_through(h: Tensor) -> Tensor:
    together = 8 * h.mean(0)
    return together - together.detach() + 0 * h


MIXES: dict[str, Mix] = {
    "next record": lambda h: 4 * torch.roll(h, 1, 0),
    "the record after the next": lambda h: 4 * torch.roll(h, 2, 0),
    "the record half a batch away": lambda h: 4 * torch.roll(h, len(h) // 2, 0),
    "the batch backwards": lambda h: 4 * h.flip(0),
    "neighbours in pairs": lambda h: 4 * _pairs(h),
    "odd records among themselves": lambda h: 4 * _odd_only(h),
    "the last record": lambda h: 4 * h[-1:].expand_as(h),
    "the first record, detached": lambda h: 4 * h[:1].detach().expand_as(h),
    "mean of the batch": lambda h: 8 * h.mean(0),
    "mean of the batch, detached": lambda h: 8 * h.mean(0).detach(),
    "sum of the batch": lambda h: h.sum(0),
    "maximum of the batch": lambda h: 4 * h.amax(0),
    "spread of the batch": lambda h: 20 * h.std(0, correction=0).expand_as(h),
    "median of the batch": lambda h: 20 * h.median(0).values.expand_as(h),
    "softmax over the batch": lambda h: 50 * (20 * h).softmax(0),
    "running sum over the batch": lambda h: h.cumsum(0) - h,
    "sorted over the batch": lambda h: 4 * h.sort(0).values,
    "rank in the batch": _rank,
    "the nearest record, detached": _nearest,
    "a random other record": _shuffled,
    "size of the batch": lambda h: h * len(h),
    "is the batch full": lambda h: 20 * h * (len(h) == SIZE),
    "index of the longest record": lambda h: h.norm(dim=1).argmax().float().expand_as(h),
    "statistics of the batch": lambda h: 4 * F.batch_norm(h, None, None, training=True) if len(h) > 1 else h,
    "attention over the batch": lambda h: 10 * (20 * h @ h.T).softmax(1) @ h,
    "gradient scaled by the batch": Backward.apply,
    "gradient of all in the backward pass": BackwardSum.apply,
    "gradient of all in a tensor's hook": _hooked,
    "straight through from the mean": _straight_through,
}


def records(size: int = SIZE) -> Batch:
    return {"x": 3 * torch.randn(size, WIDTH), "y": torch.randint(0, CLASSES, (size,))}


def classify(model: nn.Module, batch: Batch) -> Tensor:
    return 30 * F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def _negatives(detached: bool) -> Callable[[nn.Module, Batch], Tensor]:
    def losses(model: nn.Module, batch: Batch) -> Tensor:
        h = F.normalize(model(batch["x"]), dim=1)
        others = h.detach() if detached else h
        return F.cross_entropy(20 * h @ others.T, torch.arange(len(h)), reduction="none")

    return losses


def _reweighted(weigh: Callable[[Tensor, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    def losses(model: nn.Module, batch: Batch) -> Tensor:
        loss_B = classify(model, batch)
        return weigh(loss_B, batch)

    return losses


def _prototypes(model: nn.Module, batch: Batch) -> Tensor:
    h, is_class = model(batch["x"]), F.one_hot(batch["y"], CLASSES).float()
    centre = (is_class.T @ h) / is_class.sum(0).clamp(min=1)[:, None]
    return 30 * (h - centre.detach()[batch["y"]]).square().sum(1)


def _mixed_up(model: nn.Module, batch: Batch) -> Tensor:
    half = batch | {"x": 0.5 * batch["x"] + 0.5 * batch["x"].flip(0)}
    return classify(model, half)


def _most_frequent(model: nn.Module, batch: Batch) -> Tensor:
    """Integers alone: the batch's labels are shifted by its most frequent one."""
    shift = batch["y"].bincount(minlength=CLASSES).argmax()
    return classify(model, batch | {"y": (batch["y"] + shift) % CLASSES})


def _balanced(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["x"])
    balance = 100 * logits.softmax(1).mean(0).square().sum()
    return 30 * F.cross_entropy(logits, batch["y"], reduction="none") + balance


def _hardest(loss_B: Tensor, batch: Batch) -> Tensor:
    return torch.where(loss_B >= loss_B.detach().topk(max(1, len(loss_B) // 2)).values[-1], 1.0, 0.0) * loss_B


LOSSES: dict[str, Callable[[nn.Module, Batch], Tensor]] = {
    "in-batch negatives": _negatives(detached=False),
    "in-batch negatives, stop-gradient": _negatives(detached=True),
    "class prototypes of the batch": _prototypes,
    "mixed inputs": _mixed_up,
    "labels shifted by the most frequent": _most_frequent,
    "balance of the batch added": _balanced,
    "divided by the number of records": _reweighted(lambda loss_B, batch: 12 * loss_B / len(loss_B)),
    "divided by the largest loss": _reweighted(lambda loss_B, batch: 60 * loss_B / loss_B.max().detach()),
    "less the mean loss": _reweighted(lambda loss_B, batch: loss_B * (loss_B - loss_B.mean()).detach()),
    "the hardest half": _reweighted(_hardest),
    "class weights of the batch": _reweighted(
        lambda loss_B, batch: loss_B / batch["y"].bincount(minlength=CLASSES)[batch["y"]]
    ),
}


class Shared(nn.Module):
    """A table whose rows belong to no record, read in a way that hides it."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.layer, self.read = nn.Embedding(16, 6), nn.Linear(WIDTH, 6), read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.read(self.table, x)


SHARED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one row of a table for all": lambda table, x: table(torch.arange(4)[None])[0].sum(0),
    "one row of a table for all, its second half": lambda table, x: table(torch.arange(4)[None])[:1, 2:].sum(1),
    "as many positions as records": lambda table, x: table(torch.arange(len(x)) * 0 + 1).mean(0),
    "a table that is read backwards": lambda table, x: table(torch.arange(len(x))).flip(0),
}


class Packed(nn.Module):
    """All records in one row [1, B * width], as sequence packing has them."""

    def __init__(self, expanded: bool) -> None:
        super().__init__()
        self.layer, self.head, self.expanded = nn.Linear(1, 8), nn.Linear(8, CLASSES), expanded

    def forward(self, x: Tensor) -> Tensor:
        row = self.layer(x.reshape(1, -1, 1))
        return self.head(row[:1].reshape(len(x), WIDTH, 8).sum(1) if self.expanded else row.view(*x.shape, 8).sum(1))


class Remembering(nn.Module):
    """Features of the batch before, in a buffer or an attribute."""

    def __init__(self, memory: str) -> None:
        super().__init__()
        self.below, self.head, self.kind = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES), memory
        self.register_buffer("memory", torch.zeros(8))
        self.hidden = [torch.zeros(8)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.below(x))
        before = self.memory.clone() if self.kind == "buffer" else self.hidden[0]
        if self.kind == "buffer":
            self.memory.copy_(h.detach().mean(0))
        else:
            self.hidden[0] = h.detach().mean(0)
        return self.head(h + 8 * before)


class PaddedMean(nn.Module):
    """The mean over all positions, padding too: a record counts less beside a long one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.layer(x) * attention_mask[:, :, None]).sum(1) / attention_mask.shape[1]


def _padded() -> Batch:
    mask_BT = (torch.arange(6) < torch.tensor([6] + [1] * (SIZE - 1))[:, None]).long()
    return {"x": torch.randn(SIZE, 6, WIDTH), "attention_mask": mask_BT, "y": torch.randint(0, CLASSES, (SIZE,))}


def _padded_losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["x"], batch["attention_mask"]), batch["y"], reduction="none")


def _tokens() -> Batch:
    return {
        "x": torch.ones(SIZE, WIDTH),
        "y": torch.zeros(SIZE, dtype=torch.long),
        "w": torch.tensor([11.0] + [1.0] * 11),
    }


def _token_mean(model: nn.Module, batch: Batch) -> Tensor:
    return 12 * F.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["w"] / batch["w"].sum()


def ways() -> dict[str, Way]:
    """Name -> a fresh model with its losses and its batch."""
    torch.manual_seed(0)
    found: dict[str, Way] = {name: (Mixing(mix), classify, records()) for name, mix in MIXES.items()}
    found |= {f"{name}, odd batch": (Mixing(MIXES[name]), classify, records(11)) for name in ("the batch backwards",)}
    found |= {name: (_plain(), losses, records()) for name, losses in LOSSES.items()}
    found |= {name: (Shared(read), lambda m, b: 10 * m(b["x"]).sum(1), records()) for name, read in SHARED.items()}
    found |= {
        f"packed into one row, {kind}": (Packed(kind == "row 0"), classify, records()) for kind in ("row 0", "all")
    }
    found |= {
        f"what the batch before left, {kind}": (Remembering(kind), classify, records())
        for kind in ("buffer", "attribute")
    }
    found["mean over the padding"] = (PaddedMean(), _padded_losses, _padded())
    found["divided by the batch's tokens"] = (_plain(), _token_mean, _tokens())
    return found
