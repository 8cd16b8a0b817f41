"""The command line: parses and prints, never computes. `main` is the console script `privlm`.

Commands are imported when they are called, so that `privlm` and `privlm --help` start at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from privlm.errors import PrivLMError, UsageError
from privlm.masking import mask_text

COMMANDS = {
    "run": "run one experiment:          privlm run task=ewtune model=roberta",
    "sweep": "run every combination:       privlm sweep task=ewtune privacy.epsilon=1,3,8 seed=0,1,2",
    "status": "how far a sweep is:          privlm status SWEEP",
    "cancel": "stop a sweep:                privlm cancel SWEEP",
    "list": "tasks, models, data, tables: privlm list models",
    "show": "one run's results and files: privlm show RUN",
    "compare": "runs side by side:           privlm compare RUN RUN...",
    "tables": "a paper's table and ours:    privlm tables ewtune_noise",
    "reproduce": "a paper's table, made anew:  privlm reproduce ewtune_small",
    "predict": "what a run's model says:     privlm predict RUN rows.csv",
    "evaluate": "measure a run's model:       privlm evaluate RUN data=sst2",
    "export": "a run's model, on its own:   privlm export RUN FOLDER",
    "accountant": "epsilon and noise:           privlm accountant eps --help",
    "audit": "test a run's epsilon:        privlm audit RUN",
    "build": "make a named data set:       privlm build lines FOLDER",
    "cp": "copy a YAML to edit it:      privlm cp model/minilm myconfigs/",
    "doctor": "this machine, or one run:    privlm doctor [RUN]",
}

HELP = """\
PrivLM: adapt and probe large models under privacy.

usage: privlm COMMAND ...
       privlm TASK VERB ...

{commands}

`privlm COMMAND --help` teaches each; `privlm TASK --help` lists what a task brings along.
Tab completion: eval "$(privlm -sc install=bash)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; every error of the user is one message, without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except PrivLMError as error:
        print(f"privlm: {mask_text(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `privlm list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    command, *rest = words
    if command.replace("-", "_").startswith("__local_rank"):
        raise UsageError(f"{command} is of a launcher: have it say so by LOCAL_RANK alone (deepspeed --no_local_rank)")
    if command == "--version":
        from privlm import __version__

        print(f"privlm {__version__}")
        return 0
    if command in ("-sc", "--shell-completion"):
        command = "completion"
    elif command not in COMMANDS:
        from privlm.cli import verbs

        return verbs.main(command, rest)
    module = "listing" if command == "list" else command
    return importlib.import_module(f"privlm.cli.{module}").main(rest)
