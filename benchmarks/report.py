"""Sections of BENCHMARKS.md: each begins with a mark that names its settings, so that a new measurement replaces the
old one."""

import importlib.util
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPORT = Path(__file__).resolve().parents[1] / "BENCHMARKS.md"


def write(mark: str, text: str) -> None:
    """Puts a section into BENCHMARKS.md, in the place of an earlier one with the same mark, else at the end."""
    head, *sections = REPORT.read_text(encoding="utf-8").split("<!-- ")
    by_mark = dict(section.split(" -->\n", 1) for section in sections) | {mark: text}
    body = "\n".join(f"<!-- {name} -->\n{section.strip()}\n" for name, section in by_mark.items())
    REPORT.write_text(head + body, encoding="utf-8")


def conditions(num_rounds: int, *packages: str) -> str:
    """The command, the machine and the versions, in one line; packages that are not installed are left out."""
    versions = [f"{name} {version(name)}" for name in packages if importlib.util.find_spec(name.replace("-", "_"))]
    return f"{command()}, medians of {num_rounds} rounds on 1 thread of {machine()}; {', '.join(versions)}."


def command() -> str:
    return f"`{shlex.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`"


def machine() -> str:
    return f"{os.cpu_count()} CPUs ({platform.machine()}), load average {os.getloadavg()[0]:.1f} at the end"


def spread(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
