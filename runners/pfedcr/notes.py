"""What a reader of the numbers must know of how they were made."""

from __future__ import annotations

from privlm.config import Config
from privlm.federated.schema import is_federated

from .config import is_pfedcr
from .data import Clients


def notes(config: Config, clients: Clients) -> list[str]:
    """One sentence each."""
    table = "" if config.data.simplified is None else ", traditional forms as simplified ones"
    return [
        f"texts are compared after NFKC, in lower case, without blanks{table}; greedy reading",
        f"alphabet of {len(clients.alphabet.symbols):,} declared characters and a blank",
        _arm(config),
        _start(config),
    ]


def _arm(config: Config) -> str:
    federated, task = config.federated, config.task
    if not is_federated(config):
        return "central: one model, trained on the lines of all clients together"
    said = f"{federated.name}: {federated.rounds} rounds"
    if not is_pfedcr(config):
        return said
    own, server = task.personalise, task.server
    rate = own.attention_learning_rate
    at_a_rate = "" if rate is None else f" at a rate of {rate:g}"
    return (
        f"{said}; after each the server tunes the output layer, {server.virtual_epochs} epochs of "
        f"{server.virtual_lines} virtual lines; in the end {own.epochs:g} local epochs, an average with {own.mix:g} of "
        f"that and the rest of the global model, {own.attention_epochs:g} epochs of the gates alone{at_a_rate}"
    )


def _start(config: Config) -> str:
    start, fonts = config.task.warm_start, config.task.server.fonts
    if config.task.start_run is not None:
        return "the warm start is that of task.start_run"
    return (
        f"warm start of {start.short_steps} and {start.line_steps} steps on lines that the server rendered, fonts "
        f"{fonts}: it reads styles of these fonts better than others"
    )
