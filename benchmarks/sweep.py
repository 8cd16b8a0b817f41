"""What a run of a local sweep costs beside its own work, and whether memory grows.

    python benchmarks/sweep.py --runs 200 --workers 2

Runs `privlm sweep task=ewtune scale=smoke model=tiny seed=range(0,N)` in a temporary folder. The work of a run is the
time between its start and its end as it says itself; the rest of the time that the workers had is overhead. Beside it,
a few of the same runs by `privlm run`, each in a process that has to import everything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("task=ewtune", "scale=smoke", "model=tiny", "privacy.accountant=pld")
NUM_ALONE = 3


def resident_mb(pid: int) -> float:
    """Of a process and all that it has started."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            pages[int(path.name)] = int((path / "statm").read_text().split()[1])
        except OSError:
            continue
    level, total = [pid], pages.get(pid, 0)
    while level := [child for child, parent in parents.items() if parent in level]:
        total += sum(pages.get(child, 0) for child in level)  # one may have ended between two looks
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def sweep(folder: Path, num_runs: int, num_workers: int) -> tuple[float, float, list[float]]:
    """Seconds until the first run began and of the rest; resident MB of the conductor every second."""
    command = [sys.executable, "-m", "privlm", "sweep", *WORDS, f"seed=range(0,{num_runs})"]
    log = folder / "log"
    with log.open("w") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, f"sweep.workers={num_workers}"], cwd=folder, stdout=file, stderr=file, env=_environ()
        )
        memory, first = [], None
        while process.poll() is None:
            if first is None and "begun" in log.read_text():
                first = time.monotonic()
            memory.append(resident_mb(process.pid))
            time.sleep(1)
    assert process.returncode == 0, log.read_text()
    assert first is not None
    return first - began, time.monotonic() - first, memory


def alone(folder: Path) -> float:
    """Seconds of `privlm run`, the mean of a few."""
    began = time.monotonic()
    for seed in range(NUM_ALONE):
        command = [sys.executable, "-m", "privlm", "run", *WORDS, f"seed={seed}", "runs=alone"]
        subprocess.run(command, cwd=folder, env=_environ(), check=True, capture_output=True)
    return (time.monotonic() - began) / NUM_ALONE


def _environ() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, seconds, memory = sweep(folder, arguments.runs, arguments.workers)
        results = [json.loads(path.read_text()) for path in folder.glob("runs/ewtune/*/result.json")]
        work = sum(result["seconds"] for result in results)
        each = alone(folder)
    assert len(results) == arguments.runs
    overhead = (arguments.workers * seconds - work) / arguments.runs
    part = len(memory) // 4
    print(f"{arguments.runs} runs, {arguments.workers} workers: {before:.1f} s to the first run, {seconds:.1f} s then")
    print(f"a run: {work / arguments.runs:.2f} s of its own, {overhead:.2f} s beside it; privlm run: {each:.2f} s")
    print(
        f"resident memory of all processes: {sum(memory[part : 2 * part]) / part:.0f} MB in the second quarter, "
        f"{sum(memory[-part:]) / part:.0f} MB in the last, at most {max(memory):.0f} MB"
    )


if __name__ == "__main__":
    main()
