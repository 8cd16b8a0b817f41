"""`privlm predict RUN [FILE]`: what the model of a finished run says of rows, one JSON object a row, in their order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privlm import files
from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.report.store import find_run

EPILOG = """\
examples:
  privlm predict 3f2a new_messages.jsonl            also .csv, .tsv, .json or .parquet
  echo '{"text": "you have won"}' | privlm predict 3f2a
  privlm predict 3f2a rows.jsonl | jq -r .label

The columns are those of the run's data. RUN is a path, a name, or the beginning of either its name or its hash.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm predict", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", help="a finished run")
    parser.add_argument("file", nargs="?", type=Path, help="the rows; without it JSON lines from stdin")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    run = find_run(arguments.run, runs_folder(arguments))
    if arguments.file is not None and not arguments.file.is_file():
        raise UsageError(f"no file {arguments.file}")
    from privlm.cli.trained import predictor_of

    predictor = predictor_of(run)
    for answer in predictor.predict(_from_stdin() if arguments.file is None else _from_file(arguments.file)):
        print(json.dumps(files.finite(dict(answer)), ensure_ascii=False), flush=True)
    return 0


def _from_file(path: Path) -> Iterator[dict[str, Any]]:
    from privlm.data.readers import read_table

    return read_table(path).rows()


def _from_stdin() -> Iterator[dict[str, Any]]:
    for number, line in enumerate(sys.stdin, start=1):
        try:
            row = json.loads(line.removesuffix("\n"))
        except json.JSONDecodeError as error:
            raise UsageError(f"stdin line {number}: not JSON (column {error.colno})") from None
        if not isinstance(row, dict):
            raise UsageError(f"stdin line {number}: not a JSON object")
        yield row
