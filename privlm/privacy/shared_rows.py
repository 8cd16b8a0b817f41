"""The output of a lookup that all records share, given to each record where it is broadcast.

Position tables are asked once for the whole batch. The tensor that comes back looks like any other; where it is added
to the rows of B records, expanded or repeated for them, the operation gets a copy for each record, which is what
broadcasting means, and the gradient of a copy is the gradient of its record. Every other operation gets the shared
tensor itself, which is said to whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Copied = Callable[[int, bool], Tensor]
"""copied(B, is_row): the shared rows once for each record, [B, ...]; is_row: they are [1, ...], one row for all."""

_ASKS = {"__get__", "size", "dim", "numel", "__len__"}
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_COPIES = {"expand": -1, "repeat": 1}
"""What leaves a dimension as it is."""


class SharedRows(Tensor):
    """Rows [1, ...] or [...] without a record; made by `share`."""

    copied: Copied
    escapes: Callable[[], None]

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in _COPIES and not kwargs and (copies := _copies(_COPIES[name], *args)) is not None:
            return copies
        if name in _SUMS and not kwargs and len(args) == 2:
            args = _with_copies(*args)
        with torch._C.DisableTorchFunctionSubclass():
            plain = [value.as_subclass(Tensor) if isinstance(value, SharedRows) else value for value in args]
            result = function(*plain, **{key: _plain(value) for key, value in kwargs.items()})
        if name == "to" and result is plain[0]:  # it was there already
            return args[0]
        if name not in _ASKS:
            for shared in _shared(args, kwargs):
                shared.escapes()
        return result


def share(rows: Tensor, copied: Copied, escapes: Callable[[], None]) -> SharedRows:
    """escapes(): called for every operation that gets `rows` themselves."""
    shared = rows.as_subclass(SharedRows)
    shared.copied, shared.escapes = copied, escapes
    return shared


def _shared(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[SharedRows]:
    return [value for value in pytree.tree_leaves((args, dict(kwargs))) if isinstance(value, SharedRows)]


def _copies(as_is: int, shared: Any, *sizes: Any) -> Tensor | None:
    """For expand(B, -1, -1) and repeat(B, 1, 1) of rows [1, ...]; None where it asks for something else."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if not isinstance(shared, SharedRows) or len(sizes) != shared.ndim or shared.shape[0] != 1 or sizes[0] < 1:
        return None
    is_expand = as_is == -1
    unchanged = (
        size == as_is or (is_expand and size == now) for size, now in zip(sizes[1:], shared.shape[1:], strict=True)
    )
    return shared.copied(sizes[0], True) if all(unchanged) else None


def _with_copies(a: Any, b: Any) -> tuple[Any, Any]:
    if isinstance(b, SharedRows):
        return a, _copy_for(b, a)
    return _copy_for(a, b), b


def _copy_for(shared: Any, rows: Any) -> Any:
    """A copy for each record of `rows` [B, ...], where these are shaped like [B, *the rows without a record]."""
    if not isinstance(shared, SharedRows) or not isinstance(rows, Tensor) or isinstance(rows, SharedRows):
        return shared
    is_row = shared.ndim == rows.ndim and len(shared) == 1
    of_record = shared.shape[1:] if is_row else shared.shape
    return shared.copied(len(rows), is_row) if rows.shape[1:] == of_record else shared


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, SharedRows) else value
