"""`privlm evaluate RUN [data=NAME] [data.KEY=VALUE]`: the figures of a finished run's model on its data or others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.metrics.estimate import Estimate
from privlm.report.render import console, print_table, to_json
from privlm.report.store import RunRecord, find_run
from privlm.report.table import Table
from privlm.results import TOO_FEW, interval_text

EPILOG = """\
examples:
  privlm evaluate 3f2a                              on the data of the run
  privlm evaluate 3f2a data.path=~/other_messages.tsv
  privlm evaluate 3f2a data=sst2 --json

With --json: {split: {metric: {value, ci_low, ci_high, n}}}; the ends are null where n is too small.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm evaluate", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", help="a finished run: a path, a name, or the beginning of its name or hash")
    parser.add_argument("data", nargs="*", metavar="DATA", help="words of the group data, as of privlm run")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="folder of your own YAML files")
    parser.add_argument("--json", action="store_true", help="print for machines")
    add_runs_option(parser)
    arguments = parser.parse_intermixed_args(argv)
    run = find_run(arguments.run, runs_folder(arguments))
    from privlm.cli.trained import predictor_of

    data = _data_config(run, arguments.data, arguments.config_dir)
    measured = predictor_of(run).evaluate(data)
    if arguments.json:
        print(to_json({split: {name: _json(value) for name, value in by.items()} for split, by in measured.items()}))
    else:
        rows = [[split, name, *_texts(value)] for split, by in measured.items() for name, value in by.items()]
        print_table(Table("estimates", "", ["split", "metric", "value", "95 % interval", "n"], rows, [], []), console())
    return 0


def _data_config(run: RunRecord, words: list[str], config_dirs: list[Path]) -> DictConfig:
    """The run's own data config, or what its words say with these words in place of those of the same keys.

    Raises UsageError for a word of another group.
    """
    from privlm.cli.compose import Words, compose
    from privlm.cli.trained import config_of

    for word in words:
        if not word.lstrip("+~").startswith(("data=", "data.")):
            raise UsageError(f"'{word}': evaluate takes words of the group data alone (data=NAME, data.KEY=VALUE)")
    if not words:
        return config_of(run).data
    keys = {_key(word) for word in words}
    kept = [word for word in run.overrides if _key(word) not in keys]
    if "data" in keys:  # what the run set belongs to its own data
        kept = [word for word in kept if not _key(word).startswith("data.")]
    return compose(Words((*kept, *words), tuple(config_dirs))).config.data


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _json(value: Estimate | float) -> dict[str, Any]:
    return asdict(value) if isinstance(value, Estimate) else {"value": value}


def _texts(value: Estimate | float) -> list[str]:
    if not isinstance(value, Estimate):
        return [f"{value:.4g}", "", ""]
    return [f"{value.value:.4f}", interval_text(value.ci_low, value.ci_high, ".4f") or TOO_FEW, str(value.n)]
