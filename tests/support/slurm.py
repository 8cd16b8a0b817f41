"""A real SLURM for tests, brought up by scripts/slurm_dev.sh in a folder of its own that goes with it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_dev.sh"
DAEMONS = ("munged", "slurmctld", "slurmd.n1", "slurmd.n2")

# Its input ends when the tests close it or are killed: a cluster never outlives them.
_GUARD = 'read -r _; "$0" stop > "$1/stop.log" 2>&1 && rm -rf "$1"'


class Cluster:
    """Use as a context manager.

    settings: min_job_age=2 for PRIVLM_SLURM_MIN_JOB_AGE=2. env: the environment of commands that shall reach it.
    """

    def __init__(self, **settings: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the paths of sockets are short ones
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PRIVLM_SLURM_"))
        }
        named = {f"PRIVLM_SLURM_{name.upper()}": str(value) for name, value in settings.items()}
        self.env = outside | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._own = outside | named | {"PRIVLM_SLURM_DIR": str(self.folder)}

    def __enter__(self) -> Cluster:
        self._guard = subprocess.Popen(
            ["bash", "-c", _GUARD, SCRIPT, self.folder], stdin=subprocess.PIPE, env=self._own, start_new_session=True
        )
        try:
            self.restart()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        assert self._guard.wait() == 0, (self.folder / "stop.log").read_text()
        assert self.processes() == {}

    def script(self, verb: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """scripts/slurm_dev.sh VERB, for this cluster."""
        return subprocess.run([SCRIPT, verb], env=self._own | variables, capture_output=True, text=True, check=False)

    def restart(self) -> None:
        """Brings up what is not up."""
        started = self.script("start")
        assert started.returncode == 0, started.stderr

    def kill_daemon(self, name: str) -> None:
        """With SIGKILL, its pid file stays; name: one of DAEMONS."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        while _command(pid):
            time.sleep(0.01)

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def run(self, *command: str | Path) -> str:
        """Its standard output; an AssertionError with its standard error where it fails."""
        finished = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=120)
        assert finished.returncode == 0, finished.stderr or finished.stdout
        return finished.stdout

    def submit(self, script: str, *options: str) -> str:
        """A job of a line of shell; its id."""
        output = f"--output={self.folder}/job-%j.out"
        return self.run("sbatch", "--parsable", output, *options, "--wrap", script).strip()

    def output(self, job: str) -> str:
        """What a submitted job has printed, errors as well."""
        path = self.folder / f"job-{job}.out"
        return path.read_text() if path.exists() else ""

    def show(self, job: str) -> list[dict[str, str]]:
        """What slurmctld knows of a job ("7"), of all tasks of an array ("7") or of one ("7_2"); it may be nothing.

        Tasks of an array that wait are one entry with ArrayTaskId=2-5%2.
        """
        command = ["scontrol", "-o", "show", "job", job]
        shown = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if shown.returncode != 0:
            assert re.search("Invalid job id|not found", shown.stderr + shown.stdout), shown.stderr
            return []
        return [dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", line)) for line in shown.stdout.splitlines()]

    def state(self, job: str) -> str:
        """JobState, of an array that of its first entry; GONE where slurmctld knows no such job."""
        return next((entry["JobState"] for entry in self.show(job)), "GONE")

    def wait_for(self, job: str, *states: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"{job} is {state} after {seconds} s, {states} were awaited"
            time.sleep(0.1)
        return state

    def start_now(self, job: str, seconds: float = 30) -> None:
        """A job that was queued again waits for two minutes; this ends the wait.

        What queues a job again says so a moment before slurmctld has done it: until then the update is refused. In the
        very second of its requeue its start would fail.
        """
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now+1"]
        end = time.monotonic() + seconds
        while (done := subprocess.run(update, env=self.env, capture_output=True, text=True, check=False)).returncode:
            assert time.monotonic() < end, done.stderr
            time.sleep(0.1)

    def processes(self) -> dict[int, str]:
        """Command by pid of all that run for this cluster or on it."""
        found = processes_of(self.folder)
        found.pop(self._guard.pid, None)
        return found


def processes_of(folder: Path) -> dict[int, str]:
    """Command by pid of all that live and bear the folder in command, environment or working folder."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            traces = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if bytes(folder) in traces + bytes((entry / "cwd").readlink()):
                found[int(entry.name)] = _command(int(entry.name))
    return found


def _command(pid: int) -> str:
    """Empty for a process that has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
