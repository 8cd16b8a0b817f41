"""The grid of Flower that this process talks to its SuperNodes by; there is one in a ServerApp alone. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

LOOK_AGAIN = 0.5
"""Seconds between two looks for replies."""

_grid: ContextVar[Any] = ContextVar("grid", default=None)


def current() -> Any:
    """None outside of a ServerApp."""
    return _grid.get()


@contextlib.contextmanager
def reached_by(grid: Any) -> Iterator[None]:
    """Runs of this process whose engine is Flower take their rounds over `grid`."""
    token = _grid.set(grid)
    try:
        yield
    finally:
        _grid.reset(token)


def push(grid: Any, node: int, kind: str, content: Any, *, ttl: float, group: str = "") -> str | None:
    """Sends one message; its id, None where the SuperLink does not take it (the node is not known any more).

    kind: train or query. ttl: seconds for which message and reply are of use.
    """
    from flwr.app import Message

    found = list(grid.push_messages([Message(content, node, kind, ttl=ttl, group_id=group)]))
    return found[0] if found else None


def pull(grid: Any, open_ids: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The replies that have come to some of these messages: the id of the message and the reply."""
    if asked := list(open_ids):
        for reply in grid.pull_messages(asked):
            yield reply.metadata.reply_to_message_id, reply


def wait(until: float) -> None:
    time.sleep(max(0.0, min(LOOK_AGAIN, until - time.monotonic())))
