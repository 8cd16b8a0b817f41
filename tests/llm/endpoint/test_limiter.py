import threading

import pytest

from privlm.llm.endpoint.limiter import Limiter
from privlm.llm.endpoint.retry import retry_after

pytestmark = pytest.mark.torch_free


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_calls_of_a_minute_are_counted():
    clock = Clock()
    limiter = Limiter(8, rpm=2, clock=clock)
    for _ in range(2):
        with limiter.call(1):
            clock.now += 10
    assert limiter.seconds_to_wait(1) == 40.0  # the first was at 0 and it is 20
    clock.now += 40
    assert limiter.seconds_to_wait(1) == 0.0


def test_tokens_of_a_minute_are_counted_as_they_turned_out():
    clock = Clock()
    limiter = Limiter(8, tpm=100, clock=clock)
    with limiter.call(90) as admission:
        assert limiter.seconds_to_wait(20) == 60.0
        limiter.succeed(admission, 30)
    assert limiter.seconds_to_wait(20) == 0.0
    assert limiter.seconds_to_wait(71) == 60.0


def test_a_call_of_more_than_a_minutes_tokens_goes_alone():
    limiter = Limiter(8, tpm=100)
    with limiter.call(500):
        assert limiter.seconds_to_wait(1) > 0


def test_a_429_halves_concurrency_once_and_successes_raise_it_slowly():
    clock = Clock()
    limiter = Limiter(8, clock=clock)
    with limiter.call(1) as first, limiter.call(1) as second:
        clock.now += 1
        limiter.lower(first, 5.0)
        limiter.lower(second, None)  # was under way already
    assert limiter.allowed == 4.0
    assert limiter.seconds_to_wait(1) == 5.0
    clock.now += 5
    for _ in range(4):
        with limiter.call(1) as admission:
            limiter.succeed(admission, 1)
    assert 4.9 < limiter.allowed < 5.0
    for _ in range(100):
        limiter.succeed(admission, 1)
    assert limiter.allowed == 8.0
    for _ in range(10):
        clock.now += 1
        with limiter.call(1) as admission:
            limiter.lower(admission, None)
    assert limiter.allowed == 1.0


def test_waiting_can_be_ended():
    def check():
        raise KeyboardInterrupt

    limiter = Limiter(1, check=check)
    with limiter.call(1), pytest.raises(KeyboardInterrupt), limiter.call(1):
        pass


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_threads_are_never_more_than_allowed(concurrency):
    limiter = Limiter(concurrency)
    under_way, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal under_way, most
        with limiter.call(1):
            with lock:
                under_way += 1
                most = max(most, under_way)
            threading.Event().wait(0.01)
            with lock:
                under_way -= 1

    threads = [threading.Thread(target=work) for _ in range(80 if concurrency > 1 else 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= concurrency


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 20.0),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(header, seconds):
    assert retry_after(header, now=lambda: 1445412490.0) == seconds  # 07:28:10
