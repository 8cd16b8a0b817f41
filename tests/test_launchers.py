"""Outer launchers: a world that came through, one that did not, and what only looks like one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import tiny_run

from privlm import launchers
from privlm.cli import main
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def world(**variables: str) -> tuple[int, int] | None:
    return launchers.outer_world(variables)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING}, (3, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1",
          **MEETING}, (1, 2)),  # torchrun, started by srun on each machine
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
          **MEETING}, (1, 2)),  # a wrapper has translated mpirun's words
    ],
)  # fmt: skip
def test_a_world_that_came_through_is_joined(variables: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert launchers.outer_world(variables) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # a shell of salloc
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0",
         "PMI_SIZE": "1", "PMIX_RANK": "0"},  # an interactive step, a notebook under srun --ntasks=1
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODEID": "0"},  # a batch script
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node-a", "MASTER_PORT": "29500"},  # of a cluster's profile
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"},  # accelerate launch --num_processes 1
        {"ACCELERATE_USE_FSDP": "false", "CI": "true", "CI_NODE_TOTAL": "4", "CI_NODE_INDEX": "2"},
    ],
)  # fmt: skip
def test_a_process_that_is_alone_is_not_taken_for_one_of_several(variables: dict[str, str]) -> None:
    assert launchers.outer_world(variables) is None


@pytest.mark.parametrize(
    ("rank", "size", "name"),
    [(each.rank, each.size, each.name) for each in launchers.LAUNCHERS if "PMIX" not in each.rank],
)
@pytest.mark.parametrize("number", ["0", "1"])
def test_processes_that_do_not_know_each_other_are_refused_by_the_variable(
    rank: str, size: str, name: str, number: str
) -> None:
    with pytest.raises(UsageError, match=rf"{rank}={number} and {size}=2: {name} has started .*trainer\.processes=2"):
        world(**{rank: number, size: "2"})
    if number == "1":
        with pytest.raises(UsageError, match=f"{rank}=1: {name} has started .*RANK and WORLD_SIZE are not set"):
            world(**{rank: number, "SLURM_JOB_ID": "7"})


def test_srun_without_its_step_and_pmix_without_a_size_are_refused() -> None:
    with pytest.raises(UsageError, match="SLURM_PROCID=0 and SLURM_NTASKS=2: srun has started"):
        world(SLURM_PROCID="0", SLURM_NTASKS="2")
    with pytest.raises(UsageError, match=r"PMIX_RANK=0: a launcher of PMIx .* does not say how many"):
        world(PMIX_RANK="0")
    with pytest.raises(UsageError, match=r"OMPI_COMM_WORLD_SIZE=2: .*\(WORLD_SIZE=1\), and each would train alone"):
        world(RANK="0", WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2")


@pytest.mark.parametrize("variable", launchers.ENGINES)
def test_an_engine_that_accelerate_launch_asks_for_is_refused_by_name(variable: str) -> None:
    with pytest.raises(UsageError, match=f"{variable}=True: accelerate launch asks for {launchers.ENGINES[variable]}"):
        world(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", **MEETING, **{variable: "True"})


MISFITS = {
    "WORLD_SIZE is not set": {"RANK": "1"},
    "RANK is not set": {"WORLD_SIZE": "2"},
    "LOCAL_RANK=1 without RANK": {"LOCAL_RANK": "1"},
    "WORLD_SIZE='x' is no number": {"RANK": "0", "WORLD_SIZE": "x"},
    "RANK='' is no number": {"RANK": "", "WORLD_SIZE": "2"},
    "RANK='-1' is no number": {"RANK": "-1", "WORLD_SIZE": "2"},
    "WORLD_SIZE='2.0' is no number": {"RANK": "0", "WORLD_SIZE": "2.0"},
    "WORLD_SIZE=0: a world": {"RANK": "0", "WORLD_SIZE": "0"},
    "RANK=2 and WORLD_SIZE=2 do not fit": {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING},
    "LOCAL_RANK is not set": {"RANK": "0", "WORLD_SIZE": "2", **MEETING},
    "MASTER_ADDR is not set": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
    "MASTER_PORT is not set": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"},
    "MASTER_ADDR is empty": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING, "MASTER_ADDR": " "},
    "MASTER_PORT is empty": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING, "MASTER_PORT": ""},
    "MASTER_PORT=0 is no port": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING, "MASTER_PORT": "0"},
    "MASTER_PORT=65536 is no port": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING,
                                     "MASTER_PORT": "65536"},
    "WORLD_SIZE=1, but MASTER_ADDR": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},  # accelerate would ask for it
    "WORLD_SIZE='' is no number": {"RANK": "0", "WORLD_SIZE": ""},
    r"RANK='9{10}\.\.\.' is no number": {"RANK": "9" * 5000, "WORLD_SIZE": "2"},
    "LOCAL_RANK='' is no number": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": ""},
    "MASTER_PORT='p' is no number": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING, "MASTER_PORT": "p"},
    "LOCAL_RANK='x' is no number": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **MEETING},
    "LOCAL_RANK=2 does not fit": {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2",
                                  **MEETING},
    "LOCAL_RANK=1 does not fit RANK=0": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MEETING},
    "LOCAL_WORLD_SIZE=4 and WORLD_SIZE=2": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4",
                                            **MEETING},
}  # fmt: skip


@pytest.mark.parametrize("sentence", MISFITS)
def test_variables_that_do_not_fit_are_refused_by_name(sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        launchers.outer_world(MISFITS[sentence])


@pytest.mark.parametrize("sentence", MISFITS)
def test_nothing_is_written_where_variables_do_not_fit(
    sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in MISFITS[sentence].items():
        monkeypatch.setenv(variable, value)
    assert main(tiny_run(tmp_path / "absent.txt", tmp_path / "runs")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        (["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "privlm"], 2),
        (["accelerate", "launch", "--num-processes=3"], 3),
        (["accelerate", "launch", "--num_processes", "4", "--num_machines", "2"], None),
        (["accelerate", "launch", "--config_file", "two.yaml"], None),
        ([], None),
    ],
)
def test_accelerate_launch_on_cpus_tells_its_number_only_on_its_command_line(
    words: list[str], processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "_parent_command", lambda: words)
    variables = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", **MEETING}
    assert launchers.accelerate_processes(variables) == processes
    if processes is None:
        with pytest.raises(UsageError, match="accelerate launch was asked for several processes and has started one"):
            launchers.outer_world(variables)
    else:
        assert launchers.outer_world(variables) is None
    assert launchers.accelerate_processes({}) is None


def test_a_batch_script_that_uses_one_of_its_tasks_is_told() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert "SLURM_NTASKS=8, and this is one process" in launchers.alone_in_slurm(batch)
    assert launchers.alone_in_slurm(batch | {"SLURM_NTASKS": "1"}) == ""
    assert launchers.alone_in_slurm(batch | {"SLURM_STEP_NUM_TASKS": "1"}) == ""


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1"}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}],
    ids=lambda each: next(iter(each)),
)
def test_nothing_is_written_where_a_launcher_is_refused(variables: dict[str, str], tmp_path: Path) -> None:
    words = tiny_run(tmp_path / "absent.txt", tmp_path / "runs")
    done = subprocess.run(
        [sys.executable, "-m", "privlm", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert next(iter(variables)) in line
    assert list(tmp_path.iterdir()) == []
