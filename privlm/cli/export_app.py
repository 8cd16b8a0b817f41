"""The verb `privlm TASK export-app DIR WORDS` of tasks with clients: a run as an app of Flower."""

from __future__ import annotations

from pathlib import Path

from privlm.cli.arguments import ArgumentParser

ENGINE = "federated.engine="


def main(task: str, argv: list[str]) -> int:
    """Writes the app of `privlm run task=TASK federated.engine=flower WORDS`. Raises UsageError as that does."""
    arguments = _parser(task).parse_args(argv)
    from privlm.cli.compose import compose
    from privlm.cli.run_options import parse
    from privlm.cli.starting import words_of
    from privlm.federated.flower.export import export_app

    words = [f"task={task}", *arguments.words]
    if not any(word.startswith(ENGINE) for word in words):
        words.append(f"{ENGINE}flower")
    composed = compose(words_of(parse([*words, *_options(arguments.config_dir)])))
    export_app(composed.config, composed.words.overrides, composed.roles, arguments.folder)
    print(arguments.folder)
    return 0


def _parser(task: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"privlm {task} export-app",
        description="Writes a run as an app of Flower, for `flwr run`: clients on machines of their own.",
        epilog=f"example:\n  privlm {task} export-app app federated.timeout_s=600\n  cat app/README.md",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="words of privlm run; the engine is flower")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="as of privlm run")
    return parser


def _options(config_dirs: list[str]) -> list[str]:
    return [word for folder in config_dirs for word in ("--config-dir", folder)]
