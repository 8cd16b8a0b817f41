"""How many calls may be under way: by concurrency, which a server's 429 lowers, and by rates a minute."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MINUTE = 60.0
POLL_SECONDS = 0.1


@dataclass
class Admission:
    """A call that was let through. tokens: estimated before it; the caller puts the real number in."""

    time: float
    tokens: int


class Limiter:
    """Lets calls through, for many threads.

    concurrency: calls under way at most. A 429 halves it, once for all calls that were under way; each success raises
        it by a share, so that it regains one call per round.
    rpm, tpm: calls and tokens in any minute, None for no limit. A call with more tokens than tpm goes alone.
    check: is called while waiting; may raise.
    """

    def __init__(
        self,
        concurrency: int,
        rpm: int | None = None,
        tpm: int | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.concurrency = concurrency
        self.allowed = float(concurrency)
        self._rpm, self._tpm = rpm, tpm
        self._check = check
        self._clock = clock
        self._changed = threading.Condition()
        self._under_way = 0
        self._paused_until = self._lowered = float("-inf")
        self._admissions: deque[Admission] = deque()

    @contextlib.contextmanager
    def call(self, tokens: int) -> Iterator[Admission]:
        """Waits for its turn, and holds a place for as long as the call is under way."""
        with self._changed:
            while (seconds := self.seconds_to_wait(tokens)) > 0:
                self._check()
                self._changed.wait(min(seconds, POLL_SECONDS))
            admission = Admission(self._clock(), tokens)
            self._admissions.append(admission)
            self._under_way += 1
        try:
            yield admission
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify()

    def seconds_to_wait(self, tokens: int) -> float:
        """Seconds until a call of `tokens` may start, as things stand; 0 if it may start now."""
        now = self._clock()
        while self._admissions and self._admissions[0].time <= now - MINUTE:
            self._admissions.popleft()
        if now < self._paused_until:
            return self._paused_until - now
        if self._under_way >= max(1, int(self.allowed)):
            return POLL_SECONDS
        too_many = self._rpm is not None and len(self._admissions) >= self._rpm
        recent = sum(admission.tokens for admission in self._admissions)
        too_much = self._tpm is not None and bool(self._admissions) and recent + tokens > self._tpm
        return self._admissions[0].time + MINUTE - now if too_many or too_much else 0.0

    def lower(self, admission: Admission, pause: float | None) -> None:
        """After a 429: halves the concurrency and lets nobody through for `pause` seconds."""
        with self._changed:
            now = self._clock()
            if pause is not None:
                self._paused_until = max(self._paused_until, now + pause)
            if admission.time > self._lowered:
                self.allowed = max(1.0, self.allowed / 2)
                self._lowered = now

    def succeed(self, admission: Admission, tokens: int) -> None:
        """After an answer of `tokens` in all."""
        with self._changed:
            admission.tokens = tokens
            self.allowed = min(float(self.concurrency), self.allowed + 1.0 / self.allowed)
