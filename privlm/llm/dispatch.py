"""A batch of requests on its way to the backend: in threads to a server, in one go to weights in this process.

The record is touched by the caller's thread alone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privlm.errors import PrivLMError, ServiceError, UsageError
from privlm.llm.account import Account
from privlm.llm.budget import Spent
from privlm.llm.record import CallRecord
from privlm.llm.types import Backend, Reply, Request
from privlm.signals import Interrupted

POLL_SECONDS = 0.2  # between two looks at signals and at the leases of others


@dataclass
class Pending:
    """A distinct request of a batch, and the places in the batch that want its reply."""

    key: str
    request: Request
    places: list[int]


class Dispatch:
    """One batch of requests that the record does not answer, on its way to the backend."""

    def __init__(
        self,
        backend: Backend,
        missing: Sequence[Pending],
        *,
        record: CallRecord | None,
        account: Account,
        hand_on: Callable[[str, Reply], None],
        make_ready: Callable[[], None],
        stop: Callable[[], int],
    ) -> None:
        self.backend = backend
        self.record = record
        self.account = account
        self.hand_on = hand_on
        self.make_ready = make_ready
        self.stop = stop
        self.waiting = deque(missing)
        self.elsewhere: list[Pending] = []  # other processes are asking these
        self.in_flight: dict[str, tuple[Pending, Spent]] = {}
        self.results: queue.SimpleQueue[tuple[str, Reply | BaseException]] = queue.SimpleQueue()
        self.error: BaseException | None = None  # why no further call is started
        self.counted_at = self.renewed_at = time.monotonic()

    def run(self) -> None:
        """Hands on every reply, or raises; in either case after the calls in flight were stored."""
        try:
            if self.backend.parallel > 1:
                self._run_threads()
            else:
                self._run_in_place()
        finally:
            if self.record is not None:
                with contextlib.suppress(PrivLMError):  # what has stopped us may be the record's disk
                    self.record.release()

    # --- many calls at once (a server) ------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        while self.in_flight or (self.error is None and (self.waiting or self.elsewhere)):
            self._check_stop()
            while self.error is None and self.waiting and len(self.in_flight) < self.backend.parallel:
                before = len(self.waiting)
                self._start(self._claim(self.backend.parallel - len(self.in_flight)))
                if len(self.waiting) == before:
                    break  # a budget: there may be room when the calls under way have told their real cost
            self._collect()
        if self.error is not None:
            raise self.error

    def _start(self, allowed: Sequence[tuple[Pending, Spent]]) -> None:
        if not allowed:
            return
        try:
            self.make_ready()
        except (ServiceError, UsageError) as error:
            self.error = error
            return
        for pending, estimate in allowed:
            self.in_flight[pending.key] = pending, estimate
            # A daemon: a second Ctrl-C leaves at once, whatever a server is doing.
            threading.Thread(target=self._ask_one, args=(pending,), daemon=True).start()

    def _ask_one(self, pending: Pending) -> None:
        try:
            ((_, reply),) = self.backend.ask([pending.request])
            self.results.put((pending.key, reply))
        except BaseException as error:
            self.results.put((pending.key, error))

    def _collect(self) -> None:
        """Waits a moment for results; stores all that have come in one transaction, then hands them on."""
        if self.elsewhere or not self.in_flight:
            self._look_elsewhere()
        results = []
        try:
            if self.in_flight:
                results.append(self.results.get(timeout=POLL_SECONDS))
            elif self.elsewhere:
                time.sleep(POLL_SECONDS)
            while True:
                results.append(self.results.get_nowait())
        except queue.Empty:
            pass
        replies = []
        for key, result in results:
            pending, _ = self.in_flight.pop(key)
            reply = getattr(result, "answer", None) if isinstance(result, BaseException) else result
            if isinstance(result, BaseException):
                self.error = self.error or result
            if reply is not None:
                replies.append((pending, reply))
        self._finish(replies)

    # --- one call after the other (weights in this process, recorded answers) ---------------------------------------

    def _run_in_place(self) -> None:
        while self.error is None and (self.waiting or self.elsewhere):
            self._check_stop()
            batch = [pending for pending, _ in self._claim(len(self.waiting))] if self.error is None else []
            if batch:
                self.make_ready()
                self._ask_in_place(batch)
            elif self.error is None:
                self._look_elsewhere()
                if not self.waiting and self.elsewhere:
                    time.sleep(POLL_SECONDS)
        if self.error is not None:
            raise self.error

    def _ask_in_place(self, batch: Sequence[Pending]) -> None:
        """Asks a batch until it is answered, or until there is a reason to stop; the rest is waiting again."""
        answered = set()
        for index, reply in self.backend.ask([pending.request for pending in batch]):
            answered.add(index)
            self._finish([(batch[index], reply)])
            self._check_stop()
            if self.error is not None or self.account.exceeded(Spent(seconds=self._uncounted())):
                break
        rest = [pending for index, pending in enumerate(batch) if index not in answered]
        self.waiting.extendleft(reversed(rest))

    # --- what both share --------------------------------------------------------------------------------------------

    def _claim(self, most: int) -> list[tuple[Pending, Spent]]:
        """Takes up to `most` requests that the budget has room for and that are ours to ask."""
        allowed: list[tuple[Pending, Spent]] = []
        reserved = sum((estimate for _, estimate in self.in_flight.values()), Spent(seconds=self._uncounted()))
        while self.waiting and len(allowed) < most:
            estimate = self.account.estimate(self.waiting[0].request)
            exhausted = self.account.exceeded(reserved + estimate)
            if exhausted is not None:
                if not allowed and not self.in_flight:  # else there may be room when the real cost is known
                    self.error = exhausted
                break
            reserved += estimate
            allowed.append((self.waiting.popleft(), estimate))
        if self.record is None or not allowed:
            return allowed
        claim = self.record.claim([pending.key for pending, _ in allowed])
        by_key = {pending.key: (pending, estimate) for pending, estimate in allowed}
        self.elsewhere += [by_key[key][0] for key in claim.busy]
        self._hand_on_cached(claim.answered)
        return [by_key[key] for key in claim.granted]

    def _look_elsewhere(self) -> None:
        """Takes what other processes have answered meanwhile, and what they have given up."""
        if self.record is None or not self.elsewhere:
            return
        claim = self.record.claim([pending.key for pending in self.elsewhere])
        self.waiting.extend(pending for pending in self.elsewhere if pending.key in claim.granted)
        self.elsewhere = [pending for pending in self.elsewhere if pending.key in claim.busy]
        self._hand_on_cached(claim.answered)

    def _hand_on_cached(self, replies: dict[str, Reply]) -> None:
        for key, reply in replies.items():
            self.account.usage.cached += 1
            self._guarded(key, reply)

    def _finish(self, replies: Sequence[tuple[Pending, Reply]]) -> None:
        """Stores, then hands on."""
        if replies:
            rows = [(pending.key, pending.request, reply) for pending, reply in replies]
            self.account.keep(rows, self._uncounted())
            self.counted_at = time.monotonic()
        for pending, reply in replies:
            self._guarded(pending.key, reply)
        if self.record is not None and time.monotonic() - self.renewed_at > self.record.lease_seconds / 3:
            self.record.renew()
            self.renewed_at = time.monotonic()

    def _uncounted(self) -> float:
        """Seconds of asking that are in no account yet."""
        return time.monotonic() - self.counted_at

    def _guarded(self, key: str, reply: Reply) -> None:
        """A caller's error must not lose the calls in flight."""
        try:
            self.hand_on(key, reply)
        except BaseException as error:
            self.error = self.error or error

    def _check_stop(self) -> None:
        if self.error is None and (signum := self.stop()):
            self.error = Interrupted(signum)
