"""Engines move the messages of a round to the clients and their replies back; they know nothing of what is in them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Protocol

from privlm.errors import PrivLMError, UsageError
from privlm.federated.messages import Failure, Reply, Task
from privlm.federated.worker import Worker

logger = logging.getLogger("privlm")


class Engine(Protocol):
    """How clients are reached."""

    def run_round(self, tasks: Sequence[Task]) -> Iterator[Reply | Failure]:
        """One answer to each task, in the order of the tasks, whatever the order in which clients are ready: a mean of
        floating-point numbers depends on their order.
        """
        ...

    def close(self) -> None:
        """Ends what the engine has started."""
        ...


class InProcess:
    """One client after the other, in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run_round(self, tasks: Sequence[Task]) -> Iterator[Reply | Failure]:
        """See Engine."""
        for task in tasks:
            yield answer(self.worker, task.client, task.body)

    def close(self) -> None:
        """See Engine."""
        self.worker.close()


def answer(worker: Worker, client: str, body: bytes) -> Reply | Failure:
    """The reply of a client, or why there is none. Raises UsageError, which every client would."""
    try:
        return Reply(client, worker.answer(body))
    except UsageError:
        raise
    except PrivLMError as error:
        return Failure(client, str(error))
    except Exception as error:
        logger.debug("client %s", client, exc_info=True)
        return Failure(client, described(error))


def described(error: BaseException) -> str:
    """Kind and place of an error, and not its message, which may hold text of a client's rows."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
