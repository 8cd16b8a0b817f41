"""`privlm cancel SWEEP`: stops what is at work and what waits; runs save their state and can be resumed."""

from __future__ import annotations

import sys

from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.sweeps import folder
from privlm.sweeps.conduct import cancel
from privlm.sweeps.standing import counts

EPILOG = """\
examples:
  privlm cancel ewtune-seed        by a part of its name or by its path
  privlm sweep --resume ewtune-seed     goes on with it

Exit status: 0 nothing of the sweep is at work or waits any more, 1 something still is.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm cancel", description=__doc__, epilog=EPILOG)
    parser.add_argument("sweep", help="a path, or a unique part of the name of a sweep")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="wait so long (default 120)")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    sweep = folder.find(arguments.sweep, runs_folder(arguments))
    found = cancel(sweep, timeout=arguments.timeout)
    print(counts(found))
    left = [one for one in found if not one.has_ended and one.state in ("running", "pending")]
    for one in left:
        print(f"privlm: still {one.state}: {one.member.directory}", file=sys.stderr)
    return 1 if left else 0
