"""Per-record gradients of one parameter in factored form: norms and weighted sums without forming them all.

Everything is float32. Shapes: B records, T positions, m x n a matrix parameter, s the shape of any parameter;
G_i is the gradient of record i. The method is book-keeping (Bu et al., ICML 2023, arXiv 2210.00038) on ghost
norms (Li et al., ICLR 2022, arXiv 2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Grams:
    """Products of positions x_t . x_t' in blocks; those of the last input are kept, which the layers of queries, keys
    and values share.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, list[Block]] | None = None

    def of(self, x_BTn: Tensor) -> list[Block]:
        if self._last is not None and _is_same(self._last[0], x_BTn):
            return self._last[1]
        blocks = _gram_blocks(x_BTn)
        self._last = x_BTn, blocks
        return blocks


Block = tuple[float, Tensor]
"""A part of a symmetric matrix [B, T, T], and how often it stands in it."""
SMALL = 64
"""Positions of a block on the diagonal that is not divided any more."""


def _gram_blocks(x_BTn: Tensor) -> list[Block]:
    """x x^T without what mirrors the rest: of 128 positions 3/4 of the work, of many little more than half."""
    num_positions = x_BTn.shape[1]
    if num_positions <= SMALL:
        return [(1.0, x_BTn @ x_BTn.mT)]
    first, second = x_BTn[:, : num_positions // 2], x_BTn[:, num_positions // 2 :]
    return [*_gram_blocks(first), *_gram_blocks(second), (2.0, first @ second.mT)]


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors that are alive lie in the same memory in the same way."""
    return (x.data_ptr(), x.shape, x.stride(), x.dtype) == (y.data_ptr(), y.shape, y.stride(), y.dtype)


@dataclass(frozen=True)
class OuterProducts:
    """G_i = sum_t left_it right_it^T, the gradient of a matrix that multiplies activations."""

    left_BTm: Tensor
    right_BTn: Tensor

    def squared_norms(self, grams: Grams) -> Tensor:
        """sum_{t,t'} (left_t . left_t') (right_t . right_t'), shape [B]."""
        pairs = zip(_gram_blocks(self.left_BTm), grams.of(self.right_BTn), strict=True)
        return torch.stack([times * _dot(left, right) for (times, left), (_, right) in pairs]).sum(0)

    def accumulate(self, sum_mn: Tensor, weight_B: Tensor, is_first: bool) -> None:
        left_BTm, right_BTn = self.left_BTm, self.right_BTn
        if left_BTm.shape[2] < right_BTn.shape[2]:  # scale the smaller factor
            left_BTm = left_BTm * weight_B[:, None, None]
        else:
            right_BTn = right_BTn * weight_B[:, None, None]
        matrix_mn = sum_mn.view(left_BTm.shape[2], -1)  # the kernel of a convolution has four dimensions
        matrix_mn.addmm_(left_BTm.flatten(0, 1).T, right_BTn.flatten(0, 1), beta=1 - is_first)

    def without_records(self, dropped_B: Tensor) -> OuterProducts:
        return OuterProducts(_zero(self.left_BTm, dropped_B), _zero(self.right_BTn, dropped_B))

    def smallest_form(self) -> OuterProducts | Instantiated:
        """G_i itself where it holds no more numbers than its factors; then its norm and its sum are cheaper, too."""
        num_positions, m, n = self.left_BTm.shape[1], self.left_BTm.shape[2], self.right_BTn.shape[2]
        if num_positions * (m + n) < m * n:
            return self
        return Instantiated(self.left_BTm.mT @ self.right_BTn)


@dataclass(frozen=True)
class RowUpdates:
    """Row ids_it of G_i receives right_it, for all t: the gradient of a lookup table."""

    ids_BT: Tensor
    right_BTn: Tensor

    def squared_norms(self) -> Tensor:
        """sum_{t,t'} [id_t = id_t'] right_t . right_t', shape [B]."""
        same_BTT = self.ids_BT[:, :, None] == self.ids_BT[:, None, :]
        return _dot(same_BTT.float(), self.right_BTn @ self.right_BTn.mT)

    def accumulate(self, sum_mn: Tensor, weight_B: Tensor, is_first: bool) -> None:
        if is_first:
            sum_mn.zero_()
        weighted_BTn = self.right_BTn * weight_B[:, None, None]
        sum_mn.index_add_(0, self.ids_BT.flatten(), weighted_BTn.flatten(0, 1))

    def add_to(self, gradient_Bmn: Tensor) -> None:
        """Adds G_i to each record's matrix in place."""
        num_records, num_rows, _ = gradient_Bmn.shape
        first_row_B = num_rows * torch.arange(num_records, device=self.ids_BT.device)
        rows = (self.ids_BT + first_row_B[:, None]).flatten()
        gradient_Bmn.flatten(0, 1).index_add_(0, rows, self.right_BTn.flatten(0, 1))

    def without_records(self, dropped_B: Tensor) -> RowUpdates:
        return RowUpdates(self.ids_BT, _zero(self.right_BTn, dropped_B))


@dataclass(frozen=True)
class Instantiated:
    """G_i as it is, shape [B, *s]."""

    gradient_Bs: Tensor

    def squared_norms(self) -> Tensor:
        return _dot(self.gradient_Bs, self.gradient_Bs)

    def accumulate(self, sum_s: Tensor, weight_B: Tensor, is_first: bool) -> None:
        sum_s.view(-1).addmv_(_rows(self.gradient_Bs).T, weight_B, beta=1 - is_first)

    def without_records(self, dropped_B: Tensor) -> Instantiated:
        return Instantiated(_zero(self.gradient_Bs, dropped_B))


PerRecordGradient = OuterProducts | RowUpdates | Instantiated


def merge(parts: Sequence[PerRecordGradient]) -> list[PerRecordGradient]:
    """The gradient of one parameter from all its uses: at most one part of each form.

    A layer called several times, or a parameter that several layers share, has one gradient; parts of a form
    are joined along T (or added), so that the cross terms of its norm are right.
    """
    outer = [part for part in parts if isinstance(part, OuterProducts)]
    rows = [part for part in parts if isinstance(part, RowUpdates)]
    instantiated = [part for part in parts if isinstance(part, Instantiated)]
    merged: list[PerRecordGradient] = []
    if outer:
        joined = OuterProducts(_join([part.left_BTm for part in outer]), _join([part.right_BTn for part in outer]))
        merged.append(joined.smallest_form())
    if rows:
        updates = RowUpdates(_join([part.ids_BT for part in rows]), _join([part.right_BTn for part in rows]))
        match merged:
            case [Instantiated() as tied]:
                updates.add_to(tied.gradient_Bs)
            case _:
                merged.append(updates)
    if instantiated:
        merged.append(Instantiated(torch.stack([part.gradient_Bs for part in instantiated]).sum(0)))
    return merged


def squared_norms(merged: Sequence[PerRecordGradient], grams: Grams | None = None) -> Tensor:
    """|G_i|^2 of one parameter, shape [B], from what `merge` returned. grams: one for all parameters of a batch."""
    grams = grams or Grams()
    match merged:
        case [OuterProducts() as outer]:
            return outer.squared_norms(grams)
        case [RowUpdates() | Instantiated() as single]:
            return single.squared_norms()
        case [OuterProducts() as outer, RowUpdates() as rows]:
            return outer.squared_norms(grams) + rows.squared_norms() + 2 * _cross_term(outer, rows)
    raise AssertionError(f"no layers share a parameter in these forms: {[type(part).__name__ for part in merged]}")


def accumulate(merged: Sequence[PerRecordGradient], sum_s: Tensor, weight_B: Tensor, *, is_first: bool = False) -> None:
    """Adds sum_i weight_i G_i to `sum_s` in place; with `is_first` it replaces whatever memory that is holds."""
    for part in merged:
        part.accumulate(sum_s, weight_B, is_first)
        is_first = False


def without_records(merged: Sequence[PerRecordGradient], dropped_B: Tensor) -> list[PerRecordGradient]:
    """The same gradients with those of the records marked in `dropped_B` (bool) exactly zero."""
    return [part.without_records(dropped_B) for part in merged]


def _cross_term(outer: OuterProducts, rows: RowUpdates) -> Tensor:
    """<G_i of a tied output layer, G_i of its lookup table>, shape [B].

    sum_{t,u} left[t, id_u] (right_t . right_u), t over the positions of the layer, u over those of the table.
    """
    num_positions = outer.left_BTm.shape[1]
    left_BTU = outer.left_BTm.gather(2, rows.ids_BT[:, None, :].expand(-1, num_positions, -1))
    return _dot(left_BTU, outer.right_BTn @ rows.right_BTn.mT)


def _dot(a_Bs: Tensor, b_Bs: Tensor) -> Tensor:
    return torch.linalg.vecdot(_rows(a_Bs), _rows(b_Bs))


def _rows(x_Bs: Tensor) -> Tensor:
    """[B, numbers of a record]: one number where the parameter is a scalar."""
    return x_Bs.reshape(len(x_Bs), math.prod(x_Bs.shape[1:]))


def _join(parts_BTx: list[Tensor]) -> Tensor:
    return parts_BTx[0] if len(parts_BTx) == 1 else torch.cat(parts_BTx, dim=1)


def _zero(x_Bs: Tensor, dropped_B: Tensor) -> Tensor:
    """Replaces, not multiplies: 0 * nan is nan."""
    return x_Bs.masked_fill(dropped_B.view(-1, *[1] * (x_Bs.ndim - 1)), 0.0)
