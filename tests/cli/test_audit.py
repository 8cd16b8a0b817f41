"""`privlm audit` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.runs import only_run, tiny_run
from support.zygote import Zygote

from privlm import files
from privlm.cli import main

DELTA = ("--delta", "0")
AUDITED = ("privacy.audit.canaries=dirac", "privacy.audit.num_canaries=20", "privacy.audit.guesses_in=2",
           "privacy.audit.guesses_out=2")  # fmt: skip


@pytest.mark.torch_free
def test_bound_is_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["audit", "bound", "--canaries", "1000", "--guesses", "200", "--correct", "200", "--delta", "1e-5"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon_lower_bound"] == pytest.approx(4.166490, abs=1e-6)
    assert found["mu_estimate"] == pytest.approx(1.536398, abs=1e-6)
    assert main(words) == 0
    assert "epsilon >= 4.166490" in capsys.readouterr().out


@pytest.mark.torch_free
def test_many_runs_are_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["audit", "many_run", "--false-positives", "10", "--without", "1000", "--false-negatives", "300"]
    assert main([*words, "--with", "1000", "--delta", "1e-5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon_lower_bound"] == pytest.approx(3.600441, abs=1e-6)
    assert found["mu_estimate"] == pytest.approx(2.531303, abs=1e-6)


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (
            ["many_run", "--false-positives", "3", "--without", "2", "--false-negatives", "0", "--with", "2", *DELTA],
            "cannot exceed the numbers of runs",
        ),
        (["bound", "--canaries", "90", "--guesses", "5", "--correct", "5", "--delta", "2"], "delta must lie in"),
        (
            ["bound", "--canaries", "90", "--guesses", "5", "--correct", "5", "--delta", "0", "--confidence", "1"],
            "confidence must lie in",
        ),
        (["bound", "--canaries", "9", "--guesses", "5", "--correct", "5", "--delta", "0"], "at least 10 canaries"),
        (["bound", "--canaries", "90", "--guesses", "5", "--correct", "6", "--delta", "0"], "6 right of 5 guesses"),
        (["nothing"], "no run 'nothing'"),
    ],
)
def test_wrong_words_are_one_message(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *words]) == 2
    assert remedy in capsys.readouterr().err


@pytest.mark.medium
def test_a_run_without_canaries_gets_a_twin(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    assert zygote.run(*tiny_run(messages, tmp_path, "adapter=head")).status == 0
    run = only_run(tmp_path)
    result = (run / "result.json").read_bytes()
    finished = zygote.run("audit", str(run), "--num-canaries", "20")
    assert finished.status == 0, finished.output
    assert "holds no canaries: its audited twin has 20" in finished.output
    audit = json.loads((run / "audit.json").read_text())
    (twin,) = (path for path in run.parent.iterdir() if path != run)
    assert audit["audited_run"] == twin.name
    assert audit["num_guesses"] == 4
    assert (run / "result.json").read_bytes() == result
    assert not (run / "audit").exists()
    claims = [json.loads((path / "privacy.json").read_text())["epsilon"] for path in (run, twin)]
    assert claims[0] == claims[1] == audit["claimed_epsilon"]
    rows = json.loads((twin / "result.json").read_text())["rows"]
    assert {row["provenance"] for row in rows} == {"audited"}
    page = (run / "report.html").read_text()
    assert "PASS is not a proof" in page
    assert "PASS: ε ≥" in page
    assert "Audited run" not in page
    assert "Audited run: canaries stand" in (twin / "report.html").read_text()
    again = zygote.run("audit", str(run), "--num-canaries", "20", "--json")
    assert "already done" in again.output


@pytest.mark.medium
def test_an_audited_run_of_two_processes(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, *AUDITED, "adapter=lora", "trainer=ddp", "trainer.processes=2")
    finished = zygote.run("audit", *words)
    assert finished.status == 0, finished.output
    assert json.loads((only_run(tmp_path) / "audit.json").read_text())["verdict"] == "PASS"


@pytest.mark.medium
def test_a_run_that_understates_its_epsilon_fails(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    guesses = ("privacy.audit.num_canaries=40", "privacy.audit.guesses_in=10", "privacy.audit.guesses_out=10")
    training = (
        "privacy.noise_multiplier=0.6",
        "privacy.rng=reproducible",
        "trainer.steps=60",
        "trainer.evaluate_every=0",
    )
    words = tiny_run(messages, tmp_path, *guesses, *training)
    assert zygote.run("audit", *words).status == 0
    run = only_run(tmp_path)
    privacy = files.read_json(run / "privacy.json")
    files.write_json(run / "privacy.json", privacy | {"epsilon": 0.01})
    finished = zygote.run("audit", str(run))
    assert finished.status == 1, finished.output
    assert "audit: FAIL" in finished.output


@pytest.mark.medium
def test_lira_trains_shadow_runs(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    assert zygote.run(*tiny_run(messages, tmp_path, "adapter=head", "privacy=none")).status == 0
    run = only_run(tmp_path)
    finished = zygote.run("audit", str(run), "--lira", "--shadows", "4", "--num-canaries", "40")
    assert finished.status == 0, finished.output
    lira = json.loads((run / "lira.json").read_text())
    assert 0 <= lira["rates"]["auc"]["value"] <= 1
    assert lira["rates"]["tpr_at_fpr_0.001"]["value"] is None
    assert "no verdict" in finished.output
    assert len(list(run.parent.iterdir())) == 6


@pytest.mark.medium
def test_random_texts_are_canaries_of_a_model_of_texts(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, *AUDITED[1:], "adapter=lora", "privacy.audit.canaries=random_tokens")
    finished = zygote.run("audit", *words)
    assert finished.status == 0, finished.output
    audit = json.loads((only_run(tmp_path) / "audit.json").read_text())
    assert audit["exposure"]["mean_bits"] > 0
    assert audit["threat_model"].startswith("black box")
