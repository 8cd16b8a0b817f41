"""The one retry policy of calls over a network; the client library's own is off, so that the two do not multiply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

import tenacity

from privlm.llm.types import Status


class CallFailure(Exception):
    """One attempt of a call failed.

    status: that of the answer if no later attempt succeeds. again: whether another attempt may succeed. gone: whether
    this is the server's state and not the request's (no connection, overloaded), so that others would fail too.
    retry_after: seconds the server asks to wait.
    """

    def __init__(
        self,
        status: Status,
        detail: str,
        *,
        http_status: int | None = None,
        again: bool = True,
        gone: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.http_status = http_status
        self.again = again
        self.gone = gone
        self.retry_after = retry_after


def retrying(max_attempts: int, max_wait: float, sleep: Callable[[float], None]) -> tenacity.Retrying:
    """Attempts with exponential backoff and jitter from a second up to `max_wait`, or as long as the server asks.

    The last CallFailure is raised. The caller has refused a retry_after above max_wait.
    """
    backoff = tenacity.wait_exponential_jitter(multiplier=min(1.0, max_wait / 2), max=max_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        asked = failure.retry_after if isinstance(failure, CallFailure) else None
        return backoff(state) if asked is None else asked

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(max_attempts),
        wait=wait,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallFailure) and error.again),
        sleep=sleep,
        reraise=True,
    )


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait by the header Retry-After, a number or an HTTP date; 0 for a date that is past.

    None without the header, or where it can be neither.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None  # noqa: PLR0124 (not a number)
