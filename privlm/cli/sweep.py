"""`privlm sweep`: every combination of the given values, one run after another.

All combinations are composed and checked before the first one starts. Each is a run like any other, in its own
directory: the same sweep again skips what is finished and resumes what was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from privlm import launch
from privlm.cli import starting
from privlm.cli.compose import Composed, compose, expand
from privlm.cli.run_options import parse
from privlm.errors import PrivLMError
from privlm.masking import mask_text
from privlm.report import store
from privlm.report.compare import compare
from privlm.report.render import console, print_table, to_json
from privlm.signals import EXIT_INTERRUPTED

EPILOG = """\
examples:
  privlm sweep task=ewtune seed=0,1,2
  privlm sweep task=ewtune privacy.epsilon=1,3,8 'seed=range(0,5)'
  privlm sweep task=ewtune adapter=head,lora --dry-run       the runs and which of them are done

Results are shown as mean and standard deviation over seeds. Exit status: 0 all done, else that of the first run that
failed.
"""


def main(argv: list[str]) -> int:
    """Runs `privlm sweep ARGV`; one failed run does not stop the others, an interrupted one does."""
    arguments = parse(argv, "sweep", EPILOG)
    composed = [compose(words) for words in expand(starting.words_of(arguments))]
    if arguments.dry_run:
        return _list(composed)
    first_failure = 0
    for number, one in enumerate(composed, start=1):
        print(f"\n[{number}/{len(composed)}] {' '.join(one.words.overrides)}", file=sys.stderr, flush=True)
        try:
            status = starting.start(one, force=arguments.force, as_json=False, show=False)
        except PrivLMError as error:  # a directory that is in use, or damaged
            print(f"privlm: {mask_text(str(error))}", file=sys.stderr)
            status = error.exit_code
        if status in EXIT_INTERRUPTED:
            return status
        first_failure = first_failure or status
    directories = [launch.directory_of(one.config, one.roles) for one in composed]
    finished = [run for run in map(store.read_run, filter(_has_result, directories)) if run.finished]
    if finished:
        tables = compare(finished, by_cell=True)
        if arguments.json:
            print(to_json([{"title": table.title, "rows": table.values} for table in tables]))
        else:
            out = console()
            for table in tables:
                print_table(table, out)
    return first_failure


def _has_result(directory: Path) -> bool:
    return (directory / "result.json").exists()


def _list(composed: list[Composed]) -> int:
    for one in composed:
        directory = launch.directory_of(one.config, one.roles)
        state = store.read_run(directory).state if directory.exists() else "new"
        print(f"{state:<12} {directory}")
    return 0
