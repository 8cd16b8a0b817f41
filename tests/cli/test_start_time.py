"""What answers at once must import nothing heavy: seconds cannot be asserted on a busy machine, modules can."""

import os
import subprocess
import sys

import pytest
from support.outside import PACKAGE

pytestmark = pytest.mark.torch_free

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "scipy", "dp_accounting", "matplotlib", "wandb")
PROBE = (
    "import sys\n"
    "from privlm.cli import main\n"
    "try:\n"
    "    main(sys.argv[1:])\n"
    "finally:\n"
    "    print(*sys.modules, file=sys.stderr)\n"
)


def modules_after(*argv, **variables):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=True, env=os.environ | variables
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "argv",
    [(), ("--help",), ("run", "--help"), ("list",), ("list", "--help"), ("cp", "--help"), ("-sc", "install=bash")],
)
def test_answers_without_hydra(argv):
    assert not modules_after(*argv) & {*HEAVY, "hydra", "rich"}


def test_verbs_of_a_task_are_listed_without_hydra():
    assert not modules_after("majority", "--help", PYTHONPATH=str(PACKAGE)) & {*HEAVY, "hydra", "rich"}


def test_a_composed_configuration_needs_nothing_heavy():
    assert not modules_after("run", "task=ewtune", "--cfg", "job") & {*HEAVY}


@pytest.mark.parametrize(
    ("line", "unneeded"), [("privlm ru", {*HEAVY, "hydra"}), ("privlm run task=ewtune tra", {*HEAVY})]
)
def test_completion_needs_nothing_heavy(line, unneeded):
    assert not modules_after("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))) & unneeded


def test_a_dry_run_needs_no_torch():
    noise = ("privacy.noise_multiplier=1", "privacy.epsilon=null")  # no search for it, which takes seconds
    modules = modules_after("run", "task=ewtune", "model=tiny", *noise, "--dry-run")
    assert not modules & {"torch", "transformers", "peft", "accelerate", "matplotlib", "wandb"}
