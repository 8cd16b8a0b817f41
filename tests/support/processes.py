"""Processes as the system sees them."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path


def children_of(parent: int) -> list[int]:
    stats = [text for path in Path("/proc").glob("[0-9]*/stat") if (text := _read(path))]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == parent]


def is_worker(pid: int) -> bool:
    """Whether multiprocessing has spawned it to work, not to keep account of resources."""
    return "spawn_main" in _read(Path(f"/proc/{pid}/cmdline"))


def is_there(pid: int) -> bool:
    """False for a zombie too."""
    return bool(_read(Path(f"/proc/{pid}/cmdline")))


def wait_until_gone(pids: Iterable[int]) -> None:
    """They end with their parent, at once, but nobody waits for them."""
    end = time.monotonic() + 60
    while left := [pid for pid in pids if is_there(pid)]:
        assert time.monotonic() < end, f"they outlived the run: {left}"
        time.sleep(0.01)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def forked_status(work: Callable[[], object]) -> int:
    """Exit status of a copy of this process that does `work`: 0, 1 where it raised, negative where it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
