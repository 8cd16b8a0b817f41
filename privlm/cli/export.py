"""`privlm export RUN FOLDER`: the model of a finished run as a folder that its library loads without PrivLM, with a
card (README.md) that says what it is, what it measured and what its privacy is.
"""

from __future__ import annotations

from pathlib import Path

from privlm import files
from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.report.model_card import NAME, model_card
from privlm.report.store import find_run

EPILOG = """\
example:
  privlm export 3f2a ~/models/spam
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm export", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", help="a finished run: a path, a name, or the beginning of its name or hash")
    parser.add_argument("folder", type=Path, help="a new folder")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    run = find_run(arguments.run, runs_folder(arguments))
    folder = arguments.folder.expanduser()
    if folder.exists():
        raise UsageError(f"{folder} exists already; name a new folder")
    from privlm.cli.trained import predictor_of

    predictor = predictor_of(run)

    def fill(temporary: Path) -> None:
        predictor.export(temporary)
        (temporary / NAME).write_text(model_card(run, temporary), encoding="utf-8")

    files.write_directory(folder, fill)
    print(folder)
    return 0
