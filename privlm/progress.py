"""Progress of long work: a bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINE_SECONDS = 15.0


@contextlib.contextmanager
def progress(description: str, total: int, *, start: int = 0, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many of `total` are done.

    visible: False in the processes that are not the main one.
    """
    if not visible or total <= start:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(description, total, start) as update:
            yield update
    else:
        yield _Lines(description, total, start)


@contextlib.contextmanager
def _bar(description: str, total: int, start: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=start)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    """Prints the first and the last state and one every few seconds, with the time left."""

    def __init__(self, description: str, total: int, start: int) -> None:
        self.description = description
        self.total = total
        self.start = start
        self.began = self.printed = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS and done < self.total:
            return
        self.printed = now
        seconds = now - self.began
        left = seconds / max(1, done - self.start) * (self.total - done)
        print(
            f"{self.description}: {done}/{self.total}, {seconds:.0f} s, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
