import subprocess
import sys

import pytest
import yaml

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
    assert capsys.readouterr().err.endswith(f"the commands are {', '.join([*COMMANDS, 'fedit', 'sur_adapter'])}\n")


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


def hydra_flag(*argv):
    """What `privlm run task=ewtune` prints with one of Hydra's own flags, which set up logging for their process."""
    command = [sys.executable, "-m", "privlm", "run", "task=ewtune", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_cfg_prints_the_configuration_with_its_recipe():
    config = yaml.safe_load(hydra_flag("model=tiny", "--cfg", "job"))
    assert config["trainer"]["batch_size"] == 32
    assert config["runs"] == "${oc.env:PRIVLM_RUNS,runs}"


def test_package_and_resolve():
    trainer = yaml.safe_load(hydra_flag("model=tiny", "--cfg", "job", "-p", "trainer", "--resolve"))
    assert trainer["optimizer"] == "sgd"
    assert "task" not in trainer


def test_info_prints_the_defaults_tree():
    out = hydra_flag("model=roberta", "--info", "defaults-tree")
    assert "model: roberta" in out
    assert "recipe/ewtune_paper" in out


def test_config_dir_and_config_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 17\n")
    words = ["--cfg", "job", "--config-dir", str(tmp_path), "--config-name", "mine"]
    assert yaml.safe_load(hydra_flag(*words))["seed"] == 17


def test_multirun_is_a_sweep(tmp_path):
    out = hydra_flag("model=tiny", "seed=0,1", f"runs={tmp_path}", "-m", "--dry-run")
    assert [line.split()[0] for line in out.splitlines()] == ["new", "new"]
    assert "seed0-" in out
    assert "seed1-" in out
