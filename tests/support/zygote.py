"""Runs commands of privlm in forks of a process that has imported everything: many short runs, torch imported once.

The parent never computes with torch, so a fork is as good as a new process. A fault kills the fork, or makes a write
fail, at a chosen write.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """status: exit status, negative for a signal. writes: durable writes that the command made; appends: numbers of
    those that append lines to a file, which alone can be torn. removals: files and folders that it removed.
    """

    status: int
    output: str
    writes: int
    appends: tuple[int, ...]
    removals: int = 0


class Zygote:
    """The waiting parent process; `run` forks it. packages: a folder of packages that are installed for it."""

    def __init__(self, folder: Path, packages: Path | None = None) -> None:
        self.folder = folder
        paths = os.pathsep.join(map(str, [_TESTS, *([packages] if packages else [])]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def run(self, *words: str, fault: tuple[str, int] | None = None) -> Finished:
        """`privlm WORDS`; fault: (kind, number of the write) with kind kill, torn (half written, then killed) or
        full; or ("remove", number of the removal before which it is killed).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        log, count = self.folder / "output.txt", self.folder / "writes.txt"
        count.write_text("")
        request = {"words": words, "fault": fault, "log": str(log), "count": str(count)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        kinds, removals = count.read_text().replace("r", ""), count.read_text().count("r")
        appends = tuple(number for number, kind in enumerate(kinds, start=1) if kind == "a")
        return Finished(status, log.read_text(), len(kinds), appends, removals)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


_TESTS = Path(__file__).resolve().parents[1]

PRELOADED = (
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "privlm.cli.starting",
    "privlm.registry",  # makes privlm.runners importable in a plain checkout
    "privlm.runners.ewtune.run",
    "privlm.training.accelerator",
)
"""What a run imports, imported once: else each fork pays ten seconds of it again."""


def _serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(request)
        _, waited = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(waited), flush=True)


def _work(request: dict[str, Any]) -> None:
    with open(request["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    _count_writes(request["fault"], request["count"])
    from privlm.cli import main

    sys.argv = ["privlm", *request["words"]]
    try:
        status = main(request["words"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _count_writes(fault: tuple[str, int] | None, count_path: str) -> None:
    """Counts fsync and rename calls, and appended lines, and strikes at the chosen one."""
    from privlm import files

    kind, chosen = fault or ("", 0)
    writes = removals = 0
    real_open, real_append = builtins.open, files.append_json_lines

    def strike(kind: str = "w") -> bool:
        """Notes a write, as a letter of the count, and tells whether it is the chosen one."""
        nonlocal writes
        writes += 1
        with real_open(count_path, "a") as file:
            file.write(kind)
        return writes == chosen and kind != "remove"

    def removing(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal removals
            removals += 1
            with real_open(count_path, "a") as file:
                file.write("r")
            if kind == "remove" and removals == chosen:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def guarded(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if strike():
                if kind == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def append(path: Path, rows: Any) -> None:
        rows = list(rows)
        if strike("a"):
            if kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if kind == "torn":
                with real_open(path, "a") as file:
                    file.write(json.dumps(rows[0])[:20])
            os.kill(os.getpid(), signal.SIGKILL)
        real_append(path, rows)

    os.fsync, os.replace = guarded(os.fsync), guarded(os.replace)
    os.unlink, os.rmdir = removing(os.unlink), removing(os.rmdir)
    files.append_json_lines = append


if __name__ == "__main__":
    _serve()
