"""What the call record costs: storing replies, and replaying them.

    python benchmarks/llm_record.py                  # 10,000 calls
    python benchmarks/llm_record.py --calls 100000 --write

A backend that answers at once stands in for a model, so all that is measured is ours: keys, leases, durable writes,
reads. Prompts have 1,500 characters and answers 500. Replaying is measured in one batch, as a resumed run reads its
answers, and one call at a time, as a program does. Writes are durable (synchronous=FULL): their time is the disk's.
"""

import argparse
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import report

from privlm.llm import LanguageModel
from privlm.llm.record import CallRecord
from privlm.llm.types import Answer, GenerateRequest, Request, Sampling

LIMIT_SECONDS, LIMIT_MILLISECONDS = 30.0, 5.0


class Instant:
    """A backend that answers at once; see privlm.llm.types.Backend."""

    name, model, capabilities = "instant", "instant", frozenset({"generate"})

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel

    def check_ready(self) -> None: ...

    def count_tokens(self, request: Request) -> int:
        return 375

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for number, _ in enumerate(requests):
            yield number, Answer("answer " * 71, "ok", "stop", 375, 125, latency_ms=1.0, http_status=200)

    def hidden_states(self, texts: Sequence[str], layer: int) -> None: ...

    def close(self) -> None: ...


def requests(number: int) -> list[GenerateRequest]:
    return [GenerateRequest(f"question {n} " + "of many words " * 106, Sampling(128)) for n in range(number)]


def seconds(
    path: Path, asked: Sequence[GenerateRequest], *, parallel: int, together: bool, cached: bool
) -> tuple[float, float]:
    """Of asking all, from the opened record to the last answer: by the clock, and of the CPU."""
    record = CallRecord(path)
    model = LanguageModel(Instant(parallel), record=record)
    began, cpu_began = time.perf_counter(), time.process_time()
    for batch in [asked] if together else [[request] for request in asked]:
        model.generate(batch)
    elapsed = time.perf_counter() - began, time.process_time() - cpu_began
    record.close()
    assert model.usage.cached == (len(asked) if cached else 0)
    return elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the record is written; default: a temporary one")
    parser.add_argument("--write", action="store_true", help=f"put the table into {report.REPORT.name}")
    arguments = parser.parse_args()
    asked = requests(arguments.calls)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, parallel in (("one after the other", 1), ("64 at once", 64)):
            path = Path(folder) / f"{parallel}.sqlite"
            rows.append((f"store, {name}", *seconds(path, asked, parallel=parallel, together=True, cached=False)))
        size = path.stat().st_size
        for name, together in (("in one batch", True), ("one at a time", False)):
            rows.append((f"replay, {name}", *seconds(path, asked, parallel=64, together=together, cached=True)))
    lines = [f"| {arguments.calls:,} calls | seconds | ms a call | CPU seconds |", "|--|--|--|--|"]
    lines += [f"| {name} | {wall:.2f} | {1000 * wall / arguments.calls:.3f} | {cpu:.2f} |" for name, wall, cpu in rows]
    lines += [
        "",
        f"Replay is to take less than {LIMIT_SECONDS:g} s and {LIMIT_MILLISECONDS:g} ms a call. The record has "
        f"{size / 1e6:.0f} MB. {report.command()}, {report.machine()}; Python {platform.python_version()}, SQLite "
        f"{sqlite3.sqlite_version}.",
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        title = f"## Call record of language models, {arguments.calls:,} calls"
        report.write(f"llm_record {arguments.calls}", f"{title}\n\n{text}")
    slowest = max(wall for name, wall, _ in rows if name.startswith("replay"))
    return 0 if slowest < LIMIT_SECONDS * arguments.calls / 10_000 else 1


if __name__ == "__main__":
    sys.exit(main())
