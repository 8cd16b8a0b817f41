"""The options of `privlm run` and `privlm sweep`. Imports nothing, so that their help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from privlm.cli.arguments import ArgumentParser

DESCRIPTION = {"run": "`privlm run`: one experiment, from words to a finished run directory."}

EPILOG = """\
examples:
  privlm run task=ewtune                              the embedded small run: real messages, a real small encoder
  privlm run task=ewtune model=roberta                the paper's recipe on SST-2
  privlm run task=ewtune adapter=lora privacy.epsilon=1
  privlm run task=ewtune privacy=none trainer=ddp trainer.processes=2
  privlm run task=ewtune data=sst2 data.path=~/glue/SST-2
  privlm run task=ewtune --dry-run                    steps, epsilon, parameters, memory; trains nothing
  privlm run task=ewtune --cfg job                    the composed configuration; -p trainer shows a part

The same command again resumes an interrupted run and skips a finished one. Options of a group: privlm list models.
Ctrl-C (and SIGTERM, SIGUSR2, SIGHUP) saves at the next step boundary and stops; a second Ctrl-C stops at once.
Exit status: 0 done, 1 failed, 2 wrong usage, 3 a service does not answer, 130 and 143 interrupted with the state saved.
"""

EPILOG_SWEEP = """\
examples:
  privlm sweep task=ewtune seed=0,1,2
  privlm sweep task=ewtune privacy.epsilon=1,3,8 'seed=range(0,5)' sweep.workers=4
  privlm sweep task=ewtune adapter=head,lora --dry-run       the runs and which of them are done
  privlm sweep task=ewtune seed=0,1,2 --detach               returns at once; privlm status shows how far it is
  privlm sweep task=ewtune seed=0,1,2 hydra/launcher=privlm_slurm hydra.launcher.partition=gpu
  privlm sweep --resume NAME sweep.workers=2                 what is not done of a sweep that is there

settings: sweep.workers=N runs at a time on this machine; sweep.stop_on_failure=true; sweep.allow_changed_code=true;
with hydra/launcher=privlm_slurm those of hydra.launcher: privlm run task=T hydra/launcher=privlm_slurm --cfg hydra.

Results are shown as mean and standard deviation over seeds, with a 95 % interval from three on; sweep.html in the
folder of the sweep has the runs and their figures as plots. Exit status: 0 all runs are done, 1 some are not, 130 and
143 interrupted with the state saved.
"""

HYDRA_FLAGS = ("cfg", "info", "package", "resolve", "hydra_help")


def parser(command: str = "run", epilog: str = EPILOG) -> ArgumentParser:
    """The options of run and sweep: ours, and those of Hydra that are passed on."""
    result = ArgumentParser(prog=f"privlm {command}", description=DESCRIPTION.get(command), epilog=epilog)
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides; task=NAME is required")
    result.add_argument("--dry-run", action="store_true", help="print what the run would do and cost, train nothing")
    result.add_argument(
        "--force",
        action="store_true",
        help="start again from nothing, even if the run is finished; the account of its releases is kept",
    )
    result.add_argument("--json", action="store_true", help="print results as JSON")
    if command == "sweep":
        result.add_argument("--detach", action="store_true", help="leave it to a process of its own, or to SLURM")
        result.add_argument("--resume", metavar="SWEEP", help="go on with a sweep: a path, or a part of its name")
    hydra = result.add_argument_group("Hydra's own")
    hydra.add_argument("-m", "--multirun", action="store_true", help="run every combination (same as privlm sweep)")
    hydra.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration instead")
    hydra.add_argument("-p", "--package", help="with --cfg: only this part")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: interpolations resolved")
    hydra.add_argument("-i", "--info", nargs="?", const="all", help="print how the configuration was composed")
    hydra.add_argument("--hydra-help", action="store_true", help="Hydra's help")
    hydra.add_argument(
        "-cd", "--config-dir", action="append", default=[], type=Path, help="folder of your own YAML files"
    )
    hydra.add_argument("-cn", "--config-name", default="config", help="primary config (default: config)")
    return result


def parse(argv: list[str], command: str = "run", epilog: str = EPILOG) -> argparse.Namespace:
    return parser(command, epilog).parse_intermixed_args(argv)
