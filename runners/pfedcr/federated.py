"""The clients of a run as a federation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from privlm.config import Config, is_private_by_record
from privlm.federated.federation import Federation
from privlm.models.loaded import Loaded

from .config import is_pfedcr
from .ctc import CTC
from .data import Clients
from .line import Line
from .line_data import LineData
from .rendered import LONG
from .strategy import PFedCR
from .warm_start import server_lines

TUNING = "tuning"


def federation_of(config: Config, loaded: Loaded, clients: Clients) -> Federation:
    """Each client with its own training lines. Raises UsageError as Federation."""
    data = {client.name: to_train_on(config, clients, client.train) for client in clients.clients}
    if not is_pfedcr(config):
        return Federation(config, loaded, CTC(), data)
    return Federation(config, loaded, CTC(), data, PFedCR(config, partial(virtual, config, clients)))


def to_train_on(config: Config, clients: Clients, lines: Sequence[Line]) -> LineData:
    """Under privacy by record all batches are of one width: a line's row then never depends on its neighbours'."""
    width = config.model.max_width if is_private_by_record(config) else None
    return LineData(lines, clients.alphabet, width=width)


def virtual(config: Config, clients: Clients) -> LineData:
    """What the server tunes the output layer on: the same balanced lines after every round."""
    return server_lines(config, clients.alphabet, config.task.server.virtual_lines, LONG, TUNING)
