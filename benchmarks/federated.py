"""What a federated round costs: by engine, beside the same rounds over a network of Flower, and by number of clients.

    scripts/flower_env.sh                            # once; the environment that all engines are measured in
    python benchmarks/federated.py --write
    python benchmarks/federated.py --without-flower  # in the environment of this Python

The job is the task `parity` of tests/fixtures: 2 clients of 256 rows, a network 20-64-2, 20 Adam steps a round, one
thread. All engines take the same rounds of the same run, and have to end with the same digest. A round's seconds are
those that metrics.jsonl tells, without the first round, in which processes start; Flower starts a process for each
message of each round, and its network is a SuperLink and two SuperNodes on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.loopback import PACKAGE, environment, running

CLIENTS = (10, 100, 1000)
MOST_GROWTH = 1.25
"""Of the peak memory from the fewest clients to the most."""


def privlm(python: Path, folder: Path, runs: str, *words: str) -> tuple[list[float], str, float]:
    """Seconds of each round but the first, the digest of the model, and the peak memory of the process in MB."""
    command = [str(python), "-m", "privlm", "run", "task=parity", f"runs={runs}", "federated.evaluate_every=0", *words]
    with (folder / f"{runs}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=_environ(python), stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0, (folder / f"{runs}.log").read_text()
    (run,) = (folder / runs / "parity").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["value"] for row in rows if row["name"] == "seconds"]
    (digest,) = json.loads((run / "result.json").read_text())["notes"]
    return seconds[1:], digest, used.ru_maxrss / 1000


def _environ(python: Path) -> dict[str, str]:
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE), "PATH": path}


def engines(python: Path, venv: Path | None, folder: Path, num_rounds: int) -> list[str]:
    """Rows of the table of engines; all have to give one model."""
    rounds, limit = f"federated.rounds={num_rounds}", "federated.timeout_s=600"
    measured = {
        "inprocess": privlm(python, folder, "inprocess", rounds),
        "pool": privlm(python, folder, "pool", rounds, "federated.engine=pool", "federated.workers=2", limit),
    }
    if venv is not None:
        with running(venv, folder) as network:
            words = ["federated.engine=flower", f"federated.superlink={network.address}", limit]
            measured["flower"] = privlm(python, folder, "flower", rounds, *words)
    assert len({digest for _, digest, _ in measured.values()}) == 1, "the engines give other models"
    fastest = median(measured["inprocess"][0])
    return [
        f"| {name} | {median(seconds):.3f} | {60 / median(seconds):,.1f} | {median(seconds) / fastest:,.1f} |"
        for name, (seconds, _, _) in measured.items()
    ]


def scaling(python: Path, folder: Path) -> tuple[list[str], float]:
    """Rows of the table of clients, and the peak memory of the most over that of the fewest."""
    rows, peaks = [], []
    for number in CLIENTS:
        words = [f"federated.num_clients={number}", "federated.rounds=2", "trainer.checkpoint_every=1"]
        (seconds,), _, peak = privlm(python, folder, f"clients{number}", *words)
        rows.append(f"| {number:,} | {seconds:.2f} | {1000 * seconds / number:.1f} | {peak:.0f} |")
        peaks.append(peak)
    return rows, peaks[-1] / peaks[0]


def versions(python: Path) -> str:
    code = (
        "import importlib.metadata as m\nfor n in ('torch', 'flwr'):\n"
        " try: print(n, m.version(n))\n except m.PackageNotFoundError: pass"
    )
    told = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return ", ".join(told.stdout.split("\n")[:-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of each engine; the first is not counted")
    parser.add_argument("--without-flower", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {report.REPORT.name}")
    arguments = parser.parse_args()
    venv = None if arguments.without_flower else environment()
    if venv is None and not arguments.without_flower:
        parser.error("no environment with Flower: scripts/flower_env.sh makes one; or --without-flower")
    python = Path(sys.executable) if venv is None else venv / "bin" / "python"
    with tempfile.TemporaryDirectory() as name:
        by_engine = engines(python, venv, Path(name), arguments.rounds)
        by_clients, growth = scaling(python, Path(name))
    lines = ["| engine | seconds a round | rounds a minute | over inprocess |", "|--|--|--|--|", *by_engine, ""]
    lines += ["| clients | seconds a round | ms a client | peak MB |", "|--|--|--|--|", *by_clients, ""]
    lines.append(
        f"Peak memory of {CLIENTS[-1]:,} clients over that of {CLIENTS[0]}: {growth:.2f}, to be below {MOST_GROWTH}. "
        f"{report.command()}, medians of {arguments.rounds - 1} rounds on {report.machine()}; {versions(python)}."
    )
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        report.write("federated", f"## Federated rounds, by engine and by number of clients\n\n{text}")
    return 0 if growth < MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
