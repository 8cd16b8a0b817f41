"""The grid of Flower that this process talks to its SuperNodes by; there is one in a ServerApp alone. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from privlm.errors import ServiceError

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

    with _told_of_the_link():
        found = list(grid.push_messages([Message(content, node, kind, ttl=ttl, group_id=group)]))
    return found[0] if found else None


def node_ids(grid: Any) -> set[int]:
    """Of the SuperNodes that the SuperLink knows; one that is gone may be among them for a while."""
    with _told_of_the_link():
        return set(grid.get_node_ids())


def pull(grid: Any, open_ids: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The replies that have come to some of these messages: the id of the message and the reply."""
    if asked := list(open_ids):
        with _told_of_the_link():
            replies = list(grid.pull_messages(asked))
        for reply in replies:
            yield reply.metadata.reply_to_message_id, reply


@contextlib.contextmanager
def _told_of_the_link() -> Iterator[None]:
    """Raises ServiceError where the SuperLink takes no more of this run."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise ServiceError(
            f"the SuperLink takes no more messages of this run: it was stopped (flwr stop), or is gone ({error}); the "
            "same command goes on after the last round"
        ) from None


def wait(until: float) -> None:
    time.sleep(max(0.0, min(LOOK_AGAIN, until - time.monotonic())))
