"""`privlm TASK VERB`: the commands that a task brings along, in the verbs.py of its folder."""

from __future__ import annotations

import difflib

from privlm import registry
from privlm.cli import COMMANDS
from privlm.errors import UsageError
from privlm.report.store import nearest


def main(task: str, argv: list[str]) -> int:
    """Runs `privlm TASK ARGV`. Raises UsageError where no task of this name has verbs, or not this one."""
    verbs = _verbs(task)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(task, verbs), end="")
        return 0
    if argv[0] not in verbs:
        raise UsageError(f"no verb '{argv[0]}'{nearest(argv[0], verbs)} (privlm {task} --help lists them)")
    return verbs[argv[0]](argv[1:])


def tasks_with_verbs() -> dict[str, dict[str, registry.Verb]]:
    """Task -> its verbs. A command of PrivLM wins over a task of its name."""
    by_task = {name: task.verbs() for name, task in registry.tasks().items() if name not in COMMANDS}
    return {name: verbs for name, verbs in by_task.items() if verbs}


def _verbs(word: str) -> dict[str, registry.Verb]:
    task = registry.tasks().get(word)
    if task is None:
        names = [*COMMANDS, *tasks_with_verbs()]
        near = difflib.get_close_matches(word, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; the commands are {', '.join(names)}"
        raise UsageError(f"no command '{word}'{hint}")
    if not (verbs := task.verbs()):
        raise UsageError(f"no command '{word}': it is a task without verbs of its own; try privlm run task={word}")
    return verbs


def _help(task: str, verbs: dict[str, registry.Verb]) -> str:
    summaries = {name: (verb.__doc__ or "").strip().partition("\n")[0] for name, verb in verbs.items()}
    width = max(map(len, verbs))
    lines = "".join(f"  {name:<{width}}  {summary}\n" for name, summary in summaries.items())
    return f"usage: privlm {task} VERB ...\n\n{lines}\n`privlm {task} VERB --help` teaches each.\n"
