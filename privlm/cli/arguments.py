"""What the commands share: an argument parser whose errors are ours, and the option that says where the runs are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

from privlm.errors import UsageError


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one difference: wrong usage is a UsageError, so that every command reports it alike.

    Descriptions and epilogs keep their line breaks: they hold examples.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_runs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder of the run directories (default: $PRIVLM_RUNS, or runs)"
    )


def runs_folder(arguments: argparse.Namespace) -> Path:
    """The folder that `--runs` names. Raises UsageError if it was given and does not exist."""
    if arguments.runs is None:
        return default_runs_folder()
    if not arguments.runs.is_dir():
        raise UsageError(f"--runs: no folder {arguments.runs}")
    return arguments.runs


def relative(path: Path) -> str:
    """As short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def default_runs_folder() -> Path:
    return Path(os.environ.get("PRIVLM_RUNS", "runs"))
