import json

import pytest

from privlm import environment
from privlm.cli import doctor


@pytest.fixture
def quick(monkeypatch):
    """All checks but that of torch, which starts a process."""
    monkeypatch.setattr(doctor, "CHECKS", [check for check in doctor.CHECKS if check is not doctor.check_torch])


def findings(capsys, status):
    assert doctor.main(["--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("quick")
def test_this_machine_can_run_the_smallest_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVLM_RUNS", str(tmp_path / "new" / "runs"))
    found = findings(capsys, 0)
    subjects = {finding["subject"] for finding in found}
    assert {"python", "packages", "threads", "configs", "tasks", "models", "hub", "slurm", "runs", "disk"} <= subjects
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_prints_one_line_a_finding(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVLM_RUNS", str(tmp_path))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines)
    assert any(str(tmp_path) in line for line in lines)


def test_a_version_out_of_range_is_a_problem_with_its_remedy(monkeypatch):
    installed = {"torch": "1.0", "peft": None}
    real = environment.package_version
    monkeypatch.setattr(environment, "package_version", lambda name: installed.get(name, real(name)))
    problems = {finding.text: finding.remedy for finding in doctor.check_packages() if finding.status == "problem"}
    assert problems == {
        "torch 1.0 is installed, not >=2.6": "pip install 'torch>=2.6'",
        "peft>=0.15 is not installed": "pip install 'peft>=0.15'",
    }


def test_what_servers_need_is_listed(monkeypatch):
    monkeypatch.setattr(environment, "package_version", {"openai": "3.57.0", "tenacity": "9.2.1"}.get)
    found = [(finding.status, finding.text, finding.remedy) for finding in doctor.check_llm()]
    assert found == [
        ("ok", "llm=endpoint: openai 3.57.0, tenacity 9.2.1", ""),
        ("note", "transformers serve: fastapi, uvicorn is not installed", "pip install 'privlm[serving]'"),
    ]


@pytest.mark.usefixtures("quick")
def test_a_runs_folder_that_cannot_be_written_is_a_problem(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRIVLM_RUNS", str(tmp_path / "file"))
    (problem,) = [finding for finding in findings(capsys, 1) if finding["status"] == "problem"]
    assert problem["subject"] == "runs"
    assert "PRIVLM_RUNS" in problem["remedy"]


@pytest.mark.usefixtures("quick")
def test_a_missing_config_folder_is_a_problem(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVLM_CONFIG_DIR", str(tmp_path / "nowhere"))
    (problem,) = [finding for finding in findings(capsys, 1) if finding["status"] == "problem"]
    assert "PRIVLM_CONFIG_DIR: no folder" in problem["text"]


def test_missing_models_name_their_remedy(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = list(doctor.check_models())
    assert [finding.status for finding in found] == ["note", "note"]
    assert all("make embedded" in finding.remedy for finding in found)


def test_offline_flags_are_shown(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = doctor.check_hub()
    assert "offline by HF_HUB_OFFLINE=1" in finding.text


def test_more_threads_than_cores_is_a_note(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (finding,) = doctor.check_threads()
    assert (finding.status, finding.remedy[:22]) == ("note", "export OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("print('2.6.0 None False')", "ok", "2.6.0"),
        ("raise ImportError('libtorch is broken')", "problem", "does not start: ImportError: libtorch is broken"),
    ],
)
def test_torch_is_asked_in_its_own_process(program, status, text, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(f"#!{doctor.sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(script))
    monkeypatch.setattr(environment, "gpu", lambda: None)
    (finding,) = doctor.check_torch()
    assert finding.status == status
    assert text in finding.text
