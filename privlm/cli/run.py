"""`privlm run`: one experiment, from words to a finished run directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from privlm.cli.run_options import HYDRA_FLAGS, parse
from privlm.errors import UsageError

if TYPE_CHECKING:
    from privlm.cli.compose import Words


def main(argv: list[str]) -> int:
    """Runs `privlm run ARGV`; returns the exit status of the run."""
    arguments = parse(argv)
    if arguments.multirun:
        from privlm.cli import sweep

        return sweep.main([word for word in argv if word not in ("-m", "--multirun")])
    from privlm.cli.compose import compose
    from privlm.cli.starting import dry_run, start, words_of

    words = words_of(arguments)
    if any(getattr(arguments, flag) for flag in HYDRA_FLAGS):
        _hydra(arguments, words)
        return 0
    _refuse_many(words.overrides)
    composed = compose(words)
    if arguments.dry_run:
        return dry_run(composed, as_json=arguments.json)
    return start(composed, force=arguments.force, as_json=arguments.json)


def _refuse_many(overrides: Sequence[str]) -> None:
    """Raises UsageError for a word that says how many runs are worked on."""
    for word in overrides:
        if word.lstrip("+").startswith(("sweep.", "hydra.launcher.", "hydra/launcher=privlm")):
            raise UsageError(f"{word} has no effect on one run here: privlm sweep takes it, for one run as well")


def _hydra(arguments: argparse.Namespace, words: Words) -> None:
    """Hydra's inspection of the configuration, on the words completed by their recipe."""
    import hydra

    from privlm.cli.compose import for_inspection, prepare
    from privlm.schema import configs_dir

    words = for_inspection(words) if not arguments.hydra_help else words
    prepare(words.config_dirs)
    flags = [f"--config-name={words.config_name}"]
    for flag in ("cfg", "package", "info"):
        if getattr(arguments, flag):
            flags += [f"--{flag}", getattr(arguments, flag)]
    flags += ["--resolve"] if arguments.resolve else []
    flags += ["--hydra-help"] if arguments.hydra_help else []
    sys.argv = ["privlm", *flags, *words.overrides]
    hydra.main(config_path=str(configs_dir()), config_name="config", version_base="1.3")(lambda config: None)()
