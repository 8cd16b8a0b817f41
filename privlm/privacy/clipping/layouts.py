"""Per-record gradients whose rows are not the records: grouped by record, stacked, or made dense.

A rule gives one gradient for each row of a layer's input. Where a record has several rows (positions flattened into
the batch), or where all rows serve every record (a table of positions), these bring them to one for each record.
Shapes as in `gradients`.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from privlm.privacy.clipping.gradients import Instantiated, OuterProducts, PerRecordGradient


def grouped(part: PerRecordGradient, num_records: int) -> PerRecordGradient:
    """The sum over the consecutive rows of each record; `num_records` divides the number of rows."""
    if isinstance(part, Instantiated):
        return Instantiated(part.gradient_Bs.unflatten(0, (num_records, -1)).sum(1))
    return type(part)(*(x.reshape(num_records, -1, *x.shape[2:]) for x in _factors(part)))


def stacked(parts: Sequence[PerRecordGradient]) -> PerRecordGradient:
    """One gradient of B records from B gradients of one record each, all of the same form."""
    return type(parts[0])(*(torch.cat(factors) for factors in zip(*map(_factors, parts), strict=True)))


def of_one_form(parts: list[PerRecordGradient], shape: torch.Size) -> list[PerRecordGradient]:
    """The parts of a parameter of shape [*s]; all dense where one of them is: no cross term is known for it.

    A table that is tied to an output layer may be used in a way that only differentiation can follow.
    """
    if len({type(part) for part in parts}) == 1 or not any(isinstance(part, Instantiated) for part in parts):
        return parts
    return [Instantiated(_dense(part, shape)) for part in parts]


def _dense(part: PerRecordGradient, shape: torch.Size) -> Tensor:
    """[B, *s]"""
    if isinstance(part, Instantiated):
        return part.gradient_Bs
    if isinstance(part, OuterProducts):
        return (part.left_BTm.mT @ part.right_BTn).reshape(-1, *shape)
    ids_BT, right_BTn = part.ids_BT, part.right_BTn
    dense_Bmn = right_BTn.new_zeros(len(ids_BT), *shape)
    return dense_Bmn.scatter_add_(1, ids_BT[:, :, None].expand_as(right_BTn), right_BTn)


def _factors(part: PerRecordGradient) -> list[Tensor]:
    return [getattr(part, field.name) for field in fields(part)]
