"""A task of an installed outside package, and configs of the user's own, without a change to any file of PrivLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.outside import PACKAGE


def privlm(*argv, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", "privlm", *argv],
        capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | variables,
    )  # fmt: skip


def with_package(*argv, cwd, **variables):
    """`privlm ARGV` where the outside package is installed: its folder holds the package and its metadata."""
    return privlm(*argv, cwd=cwd, PYTHONPATH=str(PACKAGE), **variables)


@pytest.mark.medium
def test_an_outside_task_runs_with_its_own_schema_and_configs(tmp_path):
    done = with_package("run", "task=majority", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (row,) = result["rows"]
    assert (result["task"], row["metric"], row["n"]) == ("majority", "accuracy", 1040)
    assert row["value"] == pytest.approx(901 / 1040)  # ham among the embedded test messages
    assert Path(result["directory"]).parent == tmp_path / "runs" / "majority"


@pytest.mark.medium
def test_an_outside_task_is_listed_completed_and_checked(tmp_path):
    listed = json.loads(with_package("list", "tasks", "--json", cwd=tmp_path).stdout)["tasks"]
    assert listed["majority"].startswith("Majority: ")
    assert "ewtune" in listed
    line = "privlm run task=m"
    completed = with_package("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert completed.stdout == "task=majority\n"
    for word, message in {
        "task.confidence=0": "task.confidence must be greater than 0",
        "task.confidenc=1": "did you mean 'task.confidence'?",
        "--dry-run": "task 'majority' has no plan.py",
    }.items():
        done = with_package("run", "task=majority", word, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.medium
def test_a_model_of_the_users_own_trains(zygote, tmp_path):
    my = tmp_path / "my"
    assert zygote.run("cp", "model/tiny", str(my), "wee").status == 0
    model = my / "model" / "wee.yaml"
    model.write_text(model.read_text().replace("hidden_size: 128", "hidden_size: 32"))
    words = ["task=ewtune", "model=wee", "trainer.steps=2", "trainer.evaluate_every=0", f"runs={tmp_path / 'runs'}"]
    done = zygote.run("run", *words, "--config-dir", str(my), "--json")
    assert done.status == 0, done.output
    result = json.loads(done.output[done.output.index("{") :])
    assert Path(result["directory"]).name.startswith("wee-sms_spam-head-dp8-seed0-")
    values = {row["metric"]: row["value"] for row in result["rows"]}
    assert values["trainable_parameters"] == 2 * 32 + 2
