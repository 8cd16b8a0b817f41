import os
import shutil
import subprocess
import sys

import pytest

from privlm.cli import COMMANDS, main
from privlm.cli.completion import INSTALL, OPTIONS, candidates

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("privlm ru", ["run"]),
        ("privlm c", ["cancel", "compare", "cp"]),
        ("privlm run ta", ["task="]),
        ("privlm run task=ewt", ["task=ewtune"]),
        ("privlm sweep task=ewtune sca", ["scale="]),
        ("privlm run task=ewtune model=min", ["model=minilm"]),
        ("privlm run task=ewtune task.se", ["task.setting="]),
        ("privlm run task=ewtune trainer.batch", ["trainer.batch_size="]),
        ("privlm run task=ewtune privacy.rng=", ["privacy.rng=reproducible", "privacy.rng=secure"]),
        ("privlm run task=ewtune --dry-run trainer=d", ["trainer=ddp"]),
        ("privlm run task=ewtune --dr", ["--dry-run"]),
        ("privlm list mod", ["models"]),
        ("privlm cp adapter/lo", ["adapter/lora", "adapter/lora_emnlp"]),
        ("privlm tables ewtune_n", ["ewtune_noise"]),
        ("privlm accountant ", ["batch", "curve", "eps", "ledger", "sigma", "steps"]),
        ("privlm compare --pl", ["--plot"]),
        ("privlm run task=nothing trainer.b", []),
        ("privlm run --config-dir ", []),
        ("privlm unknown ", []),
        ("", sorted([*COMMANDS, "fedit", "sur_adapter"])),  # tasks with verbs of their own
    ],
)
def test_candidates(line, expected):
    assert candidates(line) == expected


def test_keys_and_options_of_a_task():
    assert candidates("privlm run task=ewtune task.") == ["task.name=", "task.setting=", "task.until="]
    options = ["task.setting=li", "task.setting=own", "task.setting=rgp"]
    assert candidates("privlm run task=ewtune task.setting=") == options
    assert candidates("privlm run task=ewtune privacy.audit.canaries=d") == ["privacy.audit.canaries=dirac"]


def test_internal_groups_are_not_offered():
    groups = candidates("privlm run ")
    assert {"task=", "model=", "scale="} <= set(groups)
    assert not any(group.startswith(("hydra", "schema", "recipe", "table")) for group in groups)


def test_configs_of_a_user_are_offered(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    assert candidates(f"privlm run --config-dir {tmp_path} task=ewtune model=mi") == ["model=mine", "model=minilm"]


def test_run_directories(tmp_path, make_run, monkeypatch):
    run = make_run(tmp_path / "runs")
    monkeypatch.setenv("PRIVLM_RUNS", str(tmp_path / "runs"))
    assert candidates(f"privlm show {tmp_path}/ru") == [str(run)]
    assert candidates(f"privlm compare {run} {tmp_path}/ru") == [str(run)]


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_offered_exist(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert all(option in out for option in OPTIONS[command])


def test_only_bash_is_known(capsys):
    assert main(["-sc", "install=fish"]) == 2
    assert "install=bash" in capsys.readouterr().err


def test_the_cursor_may_stand_within_the_line(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "privlm ru task=ewtune")
    monkeypatch.setenv("COMP_POINT", str(len("privlm ru")))
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == "run\n"


SESSION = """
eval "$(privlm -sc install=bash)"
try() { COMP_LINE=$1; COMP_POINT=${#1}; COMPREPLY=(); _privlm_complete privlm; printf '[%s]' "${COMPREPLY[@]}"; echo; }
try 'privlm ru'
try 'privlm run ta'
try 'privlm run task=ew'
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
try 'privlm run task=ew'
complete -p privlm
eval "$(privlm -sc uninstall=bash)"
complete -p privlm 2> /dev/null || echo gone
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash(tmp_path):
    command = tmp_path / "privlm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m privlm "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SESSION], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    run, task, after_the_sign, whole, rule, uninstalled = done.stdout.splitlines()
    assert (run, task) == ("[run ]", "[task=]")
    assert after_the_sign == "[ewtune ]"  # bash breaks words at '=' and replaces only what stands after it
    assert whole == "[task=ewtune ]"
    assert rule == INSTALL.splitlines()[-1].replace("-o nospace -o default", "-o default -o nospace")
    assert uninstalled == "gone"
