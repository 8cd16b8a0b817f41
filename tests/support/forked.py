"""Commands of privlm in processes that can be signalled and killed, forked from one that has imported already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from support import zygote

PRELOADED = [
    "privlm.cli.starting", "privlm.launch", "privlm.llm.endpoint.backend", "openai", "tokenizers", *zygote.PRELOADED
]  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command at work. Its output goes to files."""

    process: BaseProcess
    files: tuple[Path, Path]

    def wait(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Exit status (negative for a signal), output and errors of the finished command."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the command does not end"
        output, errors = (file.read_text() for file in self.files)
        return self.process.exitcode, output, errors

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)


def start(words: list[str], folder: Path, *, packages: Path | None = None, **variables: str) -> Command:
    """`privlm WORDS` in `folder`. packages: a folder of packages that are installed for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    number = len(list(folder.glob("output-*")))
    files = folder / f"output-{number}", folder / f"errors-{number}"
    process = context.Process(target=_work, args=(words, folder, files, packages, variables))
    process.start()
    return Command(process, files)


def _work(
    words: list[str], folder: Path, files: tuple[Path, Path], packages: Path | None, variables: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    for file, descriptor in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    if packages is not None:
        sys.path.insert(0, str(packages))
    from privlm.cli import main

    sys.argv = ["privlm", *words]
    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
