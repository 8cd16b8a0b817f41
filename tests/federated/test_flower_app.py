"""What is refused before anything is sent to a SuperLink, and the app that is sent."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.loopback import PACKAGE, free_ports

from privlm.errors import ServiceError, UsageError
from privlm.federated.flower import export, installed
from privlm.federated.schema import PERSONAL
from privlm.flower_launch import _require_answer

ROOT = Path(__file__).resolve().parents[2]


def privlm(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-m", "privlm", *argv]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


def test_flower_that_is_absent_or_of_another_version_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", absent)
    with pytest.raises(UsageError, match=r"pip install 'privlm\[flower\]'"):
        installed.require()
    for found in ("1.40.2", "1.43.0", "2.0"):
        monkeypatch.setattr(installed, "version", lambda name, found=found: found)
        with pytest.raises(UsageError, match=rf"flwr {found} is installed, and >=1\.41,<1\.43 is supported"):
            installed.require()
    for found in ("1.41.0", "1.42.1rc1"):
        monkeypatch.setattr(installed, "version", lambda name, found=found: found)
        assert installed.require() == found


def test_the_extra_asks_for_the_versions_that_are_supported_and_is_no_part_of_all() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["flower"] == [f"flwr{installed.supported()}"]
    assert "flower" not in extras["all"][0]


def test_strategies_that_end_with_personal_models_are_known_without_torch() -> None:
    from privlm.federated.strategies import STRATEGIES

    assert set(PERSONAL) == {name for name, strategy in STRATEGIES.items() if strategy.is_personal_model}


def test_a_superlink_that_does_not_answer_is_a_service_that_fails_in_time() -> None:
    port = free_ports(1)
    with pytest.raises(ServiceError, match=f"no SuperLink answers at federated.superlink=127.0.0.1:{port} within"):
        _require_answer(f"127.0.0.1:{port}", 5)
    with socket.create_server(("127.0.0.1", port), backlog=1):
        _require_answer(f"127.0.0.1:{port}", 5)
    with pytest.raises(ServiceError):
        _require_answer("192.0.2.1:80", 0.5)  # an address of nobody (RFC 5737)
    for address in (None, "somewhere", ":8000"):
        with pytest.raises(UsageError, match="needs HOST:PORT"):
            _require_answer(address, 1)


@pytest.mark.medium
def test_the_app_holds_the_run_and_is_written_into_a_new_folder_alone(tmp_path: Path) -> None:
    words = ["parity", "export-app", "app", "federated.timeout_s=60", "trainer.steps=5"]
    done = privlm(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "app\n"), done.stderr
    app = tmp_path / "app"
    about = tomllib.loads((app / "pyproject.toml").read_text())
    assert about["tool"]["flwr"]["app"]["components"] == {"serverapp": "server_app:app", "clientapp": "client_app:app"}
    assert about["project"]["name"] == "privlm-parity"
    config, overrides, roles = export.read(app)
    assert (config.federated.engine, config.trainer.steps) == ("flower", 5)
    assert set(overrides) >= {"task=parity", *words[3:], "federated.engine=flower"}
    assert "federated.superlink" in roles.same_run
    assert "flower-supernode" in (app / "README.md").read_text()
    again = privlm(*words, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (2, "privlm: app is there and holds something: name a new folder\n")


@pytest.mark.medium
def test_what_flower_cannot_carry_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for words, message in {
        ("federated=ditto", "federated.timeout_s=9"): "federated=ditto ends with a model of each client's own",
        (): "federated.engine=flower needs federated.timeout_s",
        ("federated=none",): "federated.engine=flower needs clients",
        ("federated.engine=pool",): "is of a run with federated.engine=flower",
    }.items():
        done = privlm("parity", "export-app", "app", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "app").exists()


@pytest.mark.medium
def test_without_flower_the_command_says_so_and_writes_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("flwr") is not None:
        pytest.skip("Flower is installed here")
    done = privlm(
        "run", "task=parity", "federated.engine=flower", "federated.superlink=127.0.0.1:1", "federated.timeout_s=9",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("privlm: federated.engine=flower needs Flower, which is not installed")
    assert list(tmp_path.iterdir()) == []
