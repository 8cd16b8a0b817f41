"""A run whose rounds go over a network: handed to a SuperLink of Flower, and worked on by the ServerApp that it starts.

`privlm run` with federated.engine=flower writes the app (privlm.federated.flower.export), submits it, and shows what
the ServerApp says until it ends. That starts the run as `privlm run` does elsewhere, so that the run directory is on
the machine of the SuperLink. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from privlm.errors import BusyError, PrivLMError, ServiceError, UsageError
from privlm.federated.flower import export, grid, installed
from privlm.identity import Roles
from privlm.signals import StopFlag, exit_status

LOOK_AGAIN = 2.0
"""Seconds between two questions whether the run has ended, when nothing more comes of its log."""
PATIENCE = 60.0
"""Seconds that a run waits for another that holds its directory."""
NAME = "privlm"
"""Of the connection, in a configuration of Flower that this process writes for itself."""


# --- the ServerApp ----------------------------------------------------------------------------------------------------


def server_app(app: Path) -> Any:
    """The ServerApp of an exported app, `app` its folder. Raises UsageError without a Flower that is supported."""
    installed.require()
    from flwr.serverapp import ServerApp

    flower = ServerApp()

    @flower.main()
    def main(over: Any, context: Any) -> None:
        with grid.reached_by(over):
            status = _work(app, context.run_config)
        if status:
            raise PrivLMError(f"the run has ended with exit status {status}")

    return flower


def _work(app: Path, words: Mapping[str, Any]) -> int:
    """Exit status of the run. words: of `flwr run --run-config`."""
    from privlm import launch

    if words["folder"]:
        os.chdir(str(words["folder"]))
    config, overrides, roles = export.read(app)

    def start() -> Any:
        return launch.start(config, overrides, roles, force=bool(words["force"]), introduce=_introduce)

    ended = _when_free(start)
    if ended.skipped:
        print(f"already done, skipped (--force runs it again): {ended.directory}", file=sys.stderr, flush=True)
    else:
        launch.write_page(ended.directory)
    return ended.status


def _when_free(start: Callable[[], Any]) -> Any:
    """The ServerApp of a run that was stopped holds the directory until it hears of that."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return start()
        except BusyError:
            if time.monotonic() > end:
                raise
        time.sleep(LOOK_AGAIN)


def _introduce(directory: Path, restarts: int) -> None:
    print(f"{'resuming in' if restarts else 'run directory'} {directory.absolute()}", file=sys.stderr, flush=True)


# --- the command ------------------------------------------------------------------------------------------------------


def is_to_be_submitted(config: Any) -> bool:
    """Whether the run is one of Flower's, and this process is not its ServerApp."""
    federated = config.get("federated")
    return federated is not None and federated.engine == "flower" and grid.current() is None


def require() -> None:
    """Raises UsageError without a Flower that is supported."""
    installed.require()


def submit(
    config: DictConfig, overrides: Sequence[str], roles: Roles, *, force: bool, begun: Callable[[], None]
) -> int:
    """Has the SuperLink of federated.superlink start the run, and waits for its end; the exit status.

    force: a run that is there is removed first. begun: called when the run has been taken.

    A signal stops the run, which keeps its last round. Raises UsageError without an address, ServiceError for a
    SuperLink that does not answer within federated.connect_timeout_s, and one that is gone before the end.
    """
    _require_answer(config.federated.superlink, config.federated.connect_timeout_s)
    with tempfile.TemporaryDirectory() as temporary, StopFlag().listening() as stop:
        app = Path(temporary) / "app"
        export.export_app(config, overrides, roles, app)
        flower = _Flower(Path(temporary), config.federated.superlink)
        run = flower.run(app, {"folder": str(Path.cwd()), "force": force})
        begun()
        flower.follow(run, stop)
        return exit_status(stop.signum) if stop.signum else int(not flower.is_completed(run))


def _require_answer(superlink: str | None, seconds: float) -> None:
    host, _, port = (superlink or "").rpartition(":")
    if not (host and port.isdigit()):
        raise UsageError(
            f"federated.superlink={superlink}: federated.engine=flower needs HOST:PORT of a running SuperLink "
            "(flower-superlink --insecure --disable-runtime-dependency-installation); for one with TLS write an app, "
            "privlm TASK export-app DIR, and give it to flwr run"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise ServiceError(
            f"no SuperLink answers at federated.superlink={superlink} within federated.connect_timeout_s={seconds:g}: "
            f"{error.strerror or error}"
        ) from None


class _Flower:
    """The command `flwr` of this environment, with a configuration that names one SuperLink."""

    def __init__(self, folder: Path, superlink: str) -> None:
        self._superlink = superlink
        home = folder / "home"
        home.mkdir()
        connection = (
            f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\naddress = "{superlink}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(connection, encoding="utf-8")
        self._environ = os.environ | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}

    def run(self, app: Path, words: Mapping[str, Any]) -> str:
        """The id of the run that the SuperLink has begun."""
        told = " ".join(f"{name}={json.dumps(value)}" for name, value in words.items())
        return str(self._ask("run", str(app), NAME, "--run-config", told)["run-id"])

    def follow(self, run: str, stop: StopFlag) -> None:
        """Shows what the ServerApp says until the run has ended; stops it where this process is asked to."""
        while not self._has_ended(run):
            with self._log(run) as log:
                while log.poll() is None and not stop.signum:
                    time.sleep(0.1)
            if stop.signum:
                self._ask("stop", run, NAME)
                return
            time.sleep(LOOK_AGAIN)

    def is_completed(self, run: str) -> bool:
        return self._status(run) == "finished:completed"

    def _has_ended(self, run: str) -> bool:
        return self._status(run).startswith("finished")

    def _status(self, run: str) -> str:
        return self._ask("list", NAME, "--run-id", run)["runs"][0]["status"]

    @contextlib.contextmanager
    def _log(self, run: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [*_flwr(), "log", run, NAME, "--stream"]
        log = subprocess.Popen(command, stdout=sys.stderr, env=self._environ, start_new_session=True)
        try:
            yield log
        finally:
            log.kill()
            log.wait()

    def _ask(self, *words: str) -> dict[str, Any]:
        command = [*_flwr(), *words, "--format", "json"]
        done = subprocess.run(
            command, env=self._environ, capture_output=True, text=True, check=False, start_new_session=True
        )
        with contextlib.suppress(ValueError):
            found = json.loads(done.stdout)
            if found.get("success", True):
                return found
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ServiceError(f"the SuperLink at {self._superlink} did not do `flwr {words[0]}`: {last}")


def _flwr() -> list[str]:
    return [sys.executable, "-c", "from flwr.cli.app import app; app()"]
