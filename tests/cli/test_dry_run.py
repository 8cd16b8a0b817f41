import json
import os
import subprocess
import sys

import pytest

from privlm.cli import main

KIBIBYTE = 1024  # Linux counts ru_maxrss in them


def dry_run(capsys, *words):
    assert main(["run", "task=ewtune", *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.torch_free
def test_tells_what_the_smoke_run_would_do(capsys, tmp_path):
    plan = dry_run(capsys, "model=tiny", f"runs={tmp_path}")
    assert (plan["training_examples"], plan["steps"], plan["batch_size"]) == (512, 20, 32)
    assert plan["sampling_rate"] == 32 / 512
    assert plan["noise_multiplier"] == plan["noise_multiplier_pld"] < plan["noise_multiplier_rdp"]
    assert plan["epsilon"] <= 8
    assert plan["saving_vs_rdp"] == pytest.approx(
        100 * (1 - plan["noise_multiplier_pld"] / plan["noise_multiplier_rdp"])
    )
    assert plan["state"] == "new"
    assert plan["directory"].startswith(f"{tmp_path}/ewtune/tiny-sms_spam-head-dp8-seed0-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch_free
def test_an_estimate_keeps_its_own_name(capsys):
    words = ["model=tiny", "privacy.accountant=edgeworth", "privacy.strict=false"]
    plan = dry_run(capsys, *words)
    assert plan["noise_multiplier"] == plan["noise_multiplier_edgeworth"]
    assert plan["epsilon"] > 8 >= plan["epsilon_edgeworth"] - 1e-3
    assert plan["saving_vs_rdp"] is None


@pytest.mark.torch_free
def test_without_privacy_there_is_no_noise(capsys):
    plan = dry_run(capsys, "model=tiny", "privacy=none", "trainer.steps=null", "trainer.epochs=2.5")
    assert plan["steps"] == 40
    assert plan["epsilon"] is None
    assert not any("noise" in name for name in plan)


@pytest.mark.torch_free
def test_text_has_one_line_a_name(capsys):
    assert main(["run", "task=ewtune", "model=tiny", "privacy=none", "--dry-run"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["parameters"], lines["epsilon"], lines["state"]) == ("654,466", "-", "new")


@pytest.mark.medium
def test_parameters_and_memory_are_those_of_a_real_run(capsys, tmp_path):
    """Memory within a fifth; parameters, noise and epsilon to the digit."""
    words = ["model=tiny", "adapter=full", "trainer.steps=3", "trainer.evaluate_every=0", f"runs={tmp_path}"]
    plan = dry_run(capsys, *words)
    code = (
        "import sys\n"
        "from privlm.cli import main\n"
        "status = main(sys.argv[1:])\n"
        # not getrusage: its peak is inherited from the process that started this one
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "task=ewtune", *words, "--json"],
        capture_output=True, text=True, check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # glibc then gives freed memory back
    )  # fmt: skip
    measured = {row["metric"]: row["value"] for row in json.loads(done.stdout)["rows"]}
    shared = measured.keys() & plan.keys()
    assert {"parameters", "trainable_parameters", "noise_multiplier", "epsilon", "epsilon_edgeworth"} <= shared
    assert {name: plan[name] for name in shared} == pytest.approx({name: measured[name] for name in shared}, rel=1e-9)
    peak = int(done.stderr.splitlines()[-1]) * KIBIBYTE
    assert plan["peak_memory_bytes"] == pytest.approx(peak, rel=0.2)
    assert dry_run(capsys, *words)["state"] == "finished"
