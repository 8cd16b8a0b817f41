import subprocess
import sys

import pytest

from privlm import __version__
from privlm.cli import COMMANDS, main

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"privlm {__version__}\n"


@pytest.mark.parametrize(("word", "near"), [("runn", "run"), ("tabels", "tables"), ("docter", "doctor")])
def test_an_unknown_command_is_refused_with_the_nearest(word, near, capsys):
    assert main([word]) == 2
    assert capsys.readouterr().err == f"privlm: no command '{word}'; did you mean '{near}'?\n"


def test_a_command_like_no_other_is_answered_with_all(capsys):
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err.endswith(f"the commands are {', '.join(COMMANDS)}\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: privlm {command}" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "privlm", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
