"""The file of a ledger: one writer, which only appends, and loses nothing that another has written."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO, ClassVar
from weakref import WeakValueDictionary

from privlm.errors import PrivLMError, UsageError
from privlm.files import sync_directory


class LedgerFile:
    """Appends whole lines durably to `path`, after the lines that have been read from it.

    The lock is held from the first line until `close`, or until nobody holds this object. Within one process a later
    object takes it over, and the earlier one is refused where the later has written.
    """

    _writers: ClassVar[WeakValueDictionary[Path, LedgerFile]] = WeakValueDictionary()

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self.lines = content[: content.rfind(b"\n") + 1]
        """As they were read; what follows them was being written when a run was killed."""
        self._size = len(self.lines)
        self._known = hashlib.sha256(self.lines)  # of all lines, those that this object has written included
        self._file: IO[bytes] | None = None
        self._is_torn = False  # whether there may be more in the file than has been counted

    @property
    def is_current(self) -> bool:
        """Whether the file is as long as what this object knows of it."""
        return (self.path.stat().st_size if self.path.exists() else 0) == self._size

    def append(self, line: bytes) -> None:
        """Raises PrivLMError where another process writes the file, UsageError where it is not what was read, OSError
        where the line cannot be written; then the file counts as it was.
        """
        if self._file is None:
            self._file = self._open()
        self._refuse_changed(self._file)
        self._is_torn = True
        self._file.truncate(self._size)  # what a kill or a full disk left of an unfinished line
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._size += len(line)
        self._known.update(line)
        self._is_torn = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        is_new = not self.path.exists()
        self._refuse_unknown(b"" if is_new else self.path.read_bytes())
        if is_new and not self.path.parent.exists():  # the folder of the clients' ledgers
            self.path.parent.mkdir(exist_ok=True)
            sync_directory(self.path.parent.parent)
        if (earlier := self._writers.get(self.path.absolute())) is not None:
            earlier.close()
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            self._refuse_unknown(file.read())
        except BlockingIOError:
            file.close()
            raise PrivLMError(
                f"{self.path} is being written by another process: nothing was released here; wait for it, or stop it"
            ) from None
        except BaseException:
            file.close()
            raise
        self._is_torn = True
        self._writers[self.path.absolute()] = self
        if is_new:
            sync_directory(self.path.parent)
        return file

    def _refuse_unknown(self, found: bytes) -> None:
        """Raises UsageError where the lines of the file are not those that this object knows."""
        if hashlib.sha256(found[: found.rfind(b"\n") + 1]).digest() != self._known.digest():
            raise UsageError(
                f"{self.path} has changed since it was read: somebody else has written it. Nothing was released; "
                "start again, so that this run counts what the other has released"
            )

    def _refuse_changed(self, file: IO[bytes]) -> None:
        """Raises UsageError where the file was removed, replaced, or written by somebody who asked for no lock."""
        mine = os.fstat(file.fileno())
        try:
            is_mine = os.path.samestat(mine, self.path.stat())
        except FileNotFoundError:
            is_mine = False
        if not is_mine or (mine.st_size != self._size and not self._is_torn):
            raise UsageError(
                f"{self.path} was removed, replaced or written by somebody else while this run writes it: its account "
                "would be lost, so that the run stops before its next release"
            )
