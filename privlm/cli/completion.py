"""Bash completion: `privlm -sc install=bash` prints the function that bash needs, `query=bash` answers it.

The words of run and sweep are completed by Hydra, which is given the line without the sub-command; everything else is a
list of names. Install: eval "$(privlm -sc install=bash)"
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from privlm import registry
from privlm.cli import COMMANDS
from privlm.cli.verbs import tasks_with_verbs
from privlm.errors import PrivLMError, UsageError

INSTALL = """\
_privlm_complete() {
    local line=${COMP_LINE:0:COMP_POINT} i
    local word=${line##* }
    mapfile -t COMPREPLY < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT "$1" -sc query=bash 2> /dev/null)
    for i in "${!COMPREPLY[@]}"; do
        [[ ${COMPREPLY[i]} == *[=./] ]] || COMPREPLY[i]+=' '
        # bash breaks words at '=': what stands before it is on the line already
        [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && COMPREPLY[i]=${COMPREPLY[i]#"${word%=*}="}
    done
}
complete -o nospace -o default -F _privlm_complete privlm
"""
UNINSTALL = "complete -r privlm; unset -f _privlm_complete"

INTERNAL = ("hydra", "schema", "recipe", "table")
"""Groups that are not chosen by hand."""

OPTIONS = {
    "run": ("--dry-run", "--force", "--json", "--cfg", "--package", "--resolve", "--info", "--config-dir"),
    "sweep": ("--dry-run", "--force", "--json", "--config-dir"),
    "list": ("--json", "--config-dir"),
    "show": ("--json", "--runs", "--item"),
    "compare": ("--json", "--runs", "--by-cell", "--plot"),
    "tables": ("--json", "--runs", "--format", "--scale", "--config-dir"),
    "audit": ("--json", "--runs", "--canaries", "--num-canaries", "--seed", "--lira", "--shadows"),
    "predict": ("--runs",),
    "evaluate": ("--json", "--runs", "--config-dir"),
    "export": ("--runs",),
    "cp": ("--force",),
    "doctor": ("--json",),
}


ACCOUNTANT = ("eps", "sigma", "steps", "batch", "curve", "ledger")


def main(argv: list[str]) -> int:
    """Answers `privlm -sc ARGV`. Raises UsageError for another shell than bash."""
    if argv == ["install=bash"]:
        print(INSTALL, end="")
    elif argv == ["uninstall=bash"]:
        print(UNINSTALL)
    elif argv == ["query=bash"]:
        line = os.environ.get("COMP_LINE", "")
        for candidate in candidates(line[: int(os.environ.get("COMP_POINT", len(line)))]):
            print(candidate)
    else:
        raise UsageError("privlm -sc takes install=bash, uninstall=bash or query=bash")
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of `line`, a command line up to the cursor, can become; sorted."""
    words = line.split()[1:]
    *before, word = words if words and not line.endswith(" ") else [*words, ""]
    if not before:
        return _starting_with(word, [*COMMANDS, *tasks_with_verbs()])
    command = before[0]
    if word.startswith("-"):
        return _starting_with(word, OPTIONS.get(command, ()))
    with contextlib.suppress(PrivLMError):  # a line that cannot be composed yet has no candidates
        if command in ("run", "sweep"):
            return _overrides(before[1:], word)
        return _starting_with(word, _names(command))
    return []


def _overrides(before: list[str], word: str) -> list[str]:
    """Groups, options and keys, as Hydra completes them, and the values of a key that takes one of a few."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    from privlm.cli.compose import composer, prepare
    from privlm.cli.run_options import parse
    from privlm.cli.schemas import options_of

    key, is_value, _ = word.partition("=")
    if is_value and (choices := options_of(key)):
        return _starting_with(word, (f"{key}={choice}" for choice in choices))
    arguments = parse([word for word in before if word not in ("-h", "--help")])
    prepare(arguments.config_dir)
    with composer():
        plugin = BashCompletion(GlobalHydra.instance().config_loader())
        found = plugin._query(arguments.config_name, " ".join([*arguments.overrides, word]))
    return [candidate for candidate in found if not candidate.startswith(INTERNAL)]


def _names(command: str) -> Iterable[str]:
    from privlm.cli import cp, listing

    if command == "list":
        return listing.KINDS
    if command == "cp":
        return [f"{group}/{name}" for group in cp.groups() for name in registry.config_files(group)]
    if command == "tables":
        return [*registry.tasks(), *registry.config_files("table")]
    if command in ("show", "compare", "audit", "predict", "evaluate", "export"):
        runs = Path(os.environ.get("PRIVLM_RUNS", "runs"))
        return [str(path.parent) for path in runs.glob("*/*/status.json")]
    return ACCOUNTANT if command == "accountant" else tasks_with_verbs().get(command, ())


def _starting_with(word: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(word))
