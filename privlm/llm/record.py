"""The call record: every reply of a language model in one SQLite file. Cache, resume and bill in one.

A reply is on disk (synchronous=FULL) before a caller sees it, so a kill loses at most the calls in flight. A lease row
says who is asking, so two processes never pay for the same call: the second waits and is served.

The record holds prompts and answers. It lies in the run directory or in llm.cache_dir, and no tracker or report reads
it. Keys and headers of requests never come here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from privlm.errors import PrivLMError, UsageError
from privlm.llm.budget import Spent
from privlm.llm.types import ANSWERED, Answer, GenerateRequest, Reply, Request, Score

SCHEMA = 1
FILE_NAME = "llm_calls.sqlite"
LEASE_SLACK = 5.0  # seconds by which the clocks of two machines may differ
BUSY_SECONDS = 60.0  # how long a write of another process is waited for
KEYS_PER_QUERY = 500
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.s3fs"})

LATER_SAMPLING = {"num_beams": 1, "top_k": None}
"""Fields of Sampling that records of before do not know: at their default they are in no key."""

TABLES = """
CREATE TABLE calls (
    key TEXT PRIMARY KEY,
    backend TEXT, model TEXT, kind TEXT, sample_index INTEGER,
    request_json TEXT, response_json TEXT,
    status TEXT, http_status INTEGER, attempts INTEGER,
    prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, latency_ms REAL, created REAL,
    lease_owner TEXT, lease_until REAL
);
CREATE TABLE spent (
    payer TEXT PRIMARY KEY,
    calls INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, seconds REAL
);
"""


def call_key(backend: str, model: str, request: Request) -> str:
    """64 hexadecimal digits that tell apart everything an answer depends on: who answers, and each field of the
    request but its name.
    """
    content = asdict(request)
    content.pop("item", None)
    if isinstance(request, GenerateRequest):
        sampling = content["sampling"].items()
        content["sampling"] = {name: value for name, value in sampling if (name, value) not in LATER_SAMPLING.items()}
    kind = type(request).__name__
    text = json.dumps([SCHEMA, backend, model, kind, content], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Claim:
    """What came of asking for the right to call. granted: ours to ask. answered: by another process meanwhile.
    busy: another live process is asking.
    """

    granted: list[str] = field(default_factory=list)
    answered: dict[str, Reply] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)


class CallRecord:
    """One file of calls. For one thread; several processes may hold the same file.

    path: the SQLite file, made when absent unless `read_only`.
    lease_seconds: how long a lease holds without being renewed.
    shared: other runs use the file too, perhaps at the same time and from other machines.

    Raises UsageError, naming the file and the remedy, for a file that is corrupt, of a newer PrivLM, no call record, or
    in a folder that cannot be written, and for a shared one on a network file system.
    """

    def __init__(
        self, path: Path, *, lease_seconds: float = 180.0, read_only: bool = False, shared: bool = False
    ) -> None:
        self.path = path
        self.lease_seconds = lease_seconds
        self.owner = f"{_host()}|{os.getpid()}|{_start_time(os.getpid())}|{uuid.uuid4().hex[:8]}"
        self._seen: dict[str, tuple[str, float, float]] = {}
        network = _file_system(path.parent) in NETWORK_FILE_SYSTEMS
        if network and shared:
            raise UsageError(
                f"{path} is on a network file system, where SQLite cannot be shared: give llm.cache_dir a local folder"
            )
        if read_only and not path.exists():
            raise UsageError(
                f"no call record {path}: llm.cache=replay_only and read need one (llm.cache=write makes it)"
            )
        with self._named():
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            mode = "rwc"
            if read_only:  # a folder that cannot be written has no room for the files that readers share
                mode = "ro" if os.access(path.parent, os.W_OK) else "ro&immutable=1"
            address = f"{path.absolute().as_uri()}?mode={mode}"
            self._database = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            self._open(read_only, network)

    def _open(self, read_only: bool, network: bool) -> None:
        if not read_only:
            # WAL needs memory that processes of one machine share; the lock of the run directory covers the rest.
            self._when_free(f"PRAGMA journal_mode={'TRUNCATE' if network else 'WAL'}")
            self._database.execute("PRAGMA synchronous=FULL")
        with self._transaction() if not read_only else contextlib.nullcontext():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if version == 0 and not tables and not read_only:
                for statement in TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version={SCHEMA}")
            elif version > SCHEMA:
                raise UsageError(f"{self.path} was written by a newer PrivLM (schema {version}): update this one")
            elif version != SCHEMA or not {"calls", "spent"} <= tables:
                raise UsageError(f"{self.path} is no call record: move it away, or set llm.cache_dir")

    def _when_free(self, statement: str) -> None:
        """Changing the journal does not wait for other processes by itself."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._database.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The stored answers among `keys`, marked as cached. Failures are not served."""
        found = {}
        with self._named():
            for chunk in _chunks(keys):
                rows = self._database.execute(
                    "SELECT key, kind, response_json FROM calls "
                    f"WHERE status IN ({_marks(ANSWERED)}) AND key IN ({_marks(chunk)})",
                    [*ANSWERED, *chunk],
                )
                replies = {key: _reply(kind, response) for key, kind, response in rows}
                found.update({key: reply for key, reply in replies.items() if _is_served(reply)})
        return found

    def claim(self, keys: Sequence[str]) -> Claim:
        """Takes the lease of each key that nobody has answered and no live process is asking."""
        result = Claim()
        with self._named(), self._transaction():
            now = time.time()
            for chunk in _chunks(keys):
                rows = self._database.execute(
                    "SELECT key, kind, response_json, status, lease_owner, lease_until FROM calls "
                    f"WHERE key IN ({_marks(chunk)})",
                    chunk,
                )
                known = {row[0]: row[1:] for row in rows}
                for key in chunk:
                    kind, response, status, owner, until = known.get(key, (None, None, None, None, None))
                    reply = _reply(kind, response) if status in ANSWERED else None
                    if reply is not None and _is_served(reply):
                        result.answered[key] = reply
                    elif owner is not None and owner != self.owner and not self._is_abandoned(key, owner, until, now):
                        result.busy.append(key)
                    else:
                        result.granted.append(key)
            self._database.executemany(
                "INSERT INTO calls (key, lease_owner, lease_until) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET lease_owner=excluded.lease_owner, lease_until=excluded.lease_until",
                [(key, self.owner, now + self.lease_seconds) for key in result.granted],
            )
        return result

    def renew(self) -> None:
        """Prolongs all leases of this process."""
        with self._named():
            self._database.execute(
                "UPDATE calls SET lease_until=? WHERE lease_owner=?", [time.time() + self.lease_seconds, self.owner]
            )

    def release(self) -> None:
        """Gives back all leases of this process."""
        with self._named(), self._transaction():
            self._database.execute("DELETE FROM calls WHERE lease_owner=? AND status IS NULL", [self.owner])
            self._database.execute(
                "UPDATE calls SET lease_owner=NULL, lease_until=NULL WHERE lease_owner=?", [self.owner]
            )

    def store(self, rows: Sequence[CallRow], payer: str, spent: Spent) -> None:
        """Writes replies durably, in one transaction, and what was spent on them to the account of `payer`."""
        with self._named(), self._transaction():
            for row in rows:
                self._database.execute(
                    "INSERT OR REPLACE INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,NULL,NULL)", row.values()
                )
            self._database.execute(
                "INSERT INTO spent VALUES (?,?,?,?,?,?) ON CONFLICT (payer) DO UPDATE SET calls=calls+excluded.calls, "
                "prompt_tokens=prompt_tokens+excluded.prompt_tokens, "
                "completion_tokens=completion_tokens+excluded.completion_tokens, usd=usd+excluded.usd, "
                "seconds=seconds+excluded.seconds",
                [payer, *astuple(spent)],
            )

    def spent(self, payer: str) -> Spent:
        """What all tries of `payer` (a run, or a role in it) have spent."""
        with self._named():
            row = self._database.execute(
                "SELECT calls, prompt_tokens, completion_tokens, usd, seconds FROM spent WHERE payer=?", [payer]
            ).fetchone()
        return Spent(*row) if row else Spent()

    def close(self) -> None:
        self._database.close()

    def _is_abandoned(self, key: str, owner: str, until: float, now: float) -> bool:
        """Whether nobody can still be asking.

        An owner on this machine is looked up; of others the wall clock decides, with slack, and where that clock may
        have gone backwards, that the lease was not renewed while we watched it for its whole length.
        """
        host, pid, started, _ = owner.split("|")
        if host == _host() and str(_start_time(int(pid))) != started:
            return True
        if until + LEASE_SLACK < now:
            return True
        watched = time.monotonic()
        if self._seen.get(key, ("", 0.0, 0.0))[:2] != (owner, until):
            self._seen[key] = owner, until, watched
        return watched - self._seen[key][2] > self.lease_seconds + LEASE_SLACK

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some errors have rolled back already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns SQLite's and the system's errors into a sentence that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                remedy = "move it away to ask everything anew"
                raise UsageError(f"{self.path} is damaged or no call record ({error}): {remedy}") from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise UsageError(f"cannot write the call record {self.path}: {error}; set llm.cache_dir") from error
            if code == sqlite3.SQLITE_FULL:
                message = f"cannot write {self.path}: the disk is full; what was stored before is kept"
                raise PrivLMError(message) from error
            raise PrivLMError(f"call record {self.path}: {error}") from error
        except OSError as error:
            message = f"cannot write the call record {self.path}: {error.strerror}; set llm.cache_dir"
            raise UsageError(message) from error


@dataclass(frozen=True)
class CallRow:
    """A reply to be stored. has_price: its cost is known. keep_request: False leaves the prompt out."""

    key: str
    backend: str
    model: str
    request: Request
    reply: Reply
    spent: Spent
    has_price: bool = False
    keep_request: bool = True

    def values(self) -> list[Any]:
        request, reply = self.request, self.reply
        content = asdict(reply)
        del content["cached"]
        answer = reply if isinstance(reply, Answer) else Answer("", "ok")
        return [
            self.key,
            self.backend,
            self.model,
            "generate" if isinstance(request, GenerateRequest) else "score",
            getattr(request, "sample_index", 0),
            json.dumps(asdict(request)) if self.keep_request else None,
            json.dumps(content),
            answer.status,
            answer.http_status,
            answer.attempts,
            self.spent.prompt_tokens,
            self.spent.completion_tokens,
            self.spent.usd if self.has_price else None,
            answer.latency_ms,
            time.time(),
        ]


def _reply(kind: str, response: str) -> Reply:
    content = json.loads(response)
    if kind == "score":
        return Score(**content, cached=True)
    logprobs = content.pop("logprobs")
    return Answer(**content, logprobs=None if logprobs is None else tuple(logprobs), cached=True)


def _is_served(reply: Reply) -> bool:
    """A record of before may hold a score that is not a number, or of a probability above 1: it is asked again."""
    return not isinstance(reply, Score) or reply.sum_nll >= 0


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), KEYS_PER_QUERY):
        yield keys[start : start + KEYS_PER_QUERY]


def _marks(values: Iterable[str]) -> str:
    return ",".join("?" for _ in values)


def _host() -> str:
    """This machine and its space of process numbers: two containers may share a name, not that."""
    try:
        return f"{socket.gethostname()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None when it is gone. Numbers are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`, or unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    folder = folder.resolve()
    holding = [
        (len(words[1]), number, words[2]) for number, words in enumerate(mounts) if folder.is_relative_to(words[1])
    ]
    return max(holding)[2] if holding else "unknown"  # the longest path; of equal ones the last mounted
