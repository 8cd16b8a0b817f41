"""What the models of a run read of the clients' lines: of test lines for the figures, of training lines for doubts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from privlm.adapters.adapter import count_parameters
from privlm.config import is_private
from privlm.federated.outcome import Federated
from privlm.job import Stage
from privlm.results import Result

from .config import CENTRAL, GLOBAL, OUTSIDE
from .ctc import Readings, read
from .data import Clients
from .label_errors import doubts, precision_and_recall, write_doubts
from .line import Line
from .line_data import LineData
from .measure import Measured, report, report_clients, report_matrix
from .outside_reader import OutsideReader
from .pictures import draw_sheet
from .recogniser import Recogniser
from .scores import Scores

ReadingsOf = Callable[[str, Sequence[Line]], list[Readings]]
"""(client, lines) -> what each model that the client has reads of them."""


def evaluate(stage: Stage, model: Recogniser, clients: Clients, trained: Federated | None) -> None:
    """Rows, pictures and tables of doubtful labels. trained: of a run with rounds; None for the central arm, in which
    one model is every client's.
    """
    task = stage.config.task
    method = CENTRAL if trained is None else stage.config.federated.name
    of_all = Measured.of_one(clients, read_tests(stage, model, clients, GLOBAL))
    measured = of_all
    if trained is not None and trained.federation.strategy.is_personal_model:
        measured = Measured(clients, read_with_own(stage, trained, clients, method))
        if is_whole(trained):
            report(stage, of_all, GLOBAL, task.few_shot)
    report(stage, measured, method, task.few_shot)
    report_clients(stage, measured)
    report_matrix(stage, measured, method)
    show_lines(stage, measured)
    if task.outside_reader == OUTSIDE:
        report_outside(stage, clients)
        stage.report(split=method, unit="parameters", reader_parameters=count_parameters(model).total)
    report_doubts(stage, clients, readers(model, clients, trained))


def read_tests(stage: Stage, model: nn.Module, clients: Clients, whose: str) -> list[list[str]]:
    """What the model reads of each client's test lines; a plateau is said."""
    assert isinstance(model, Recogniser)
    model.to(stage.job.accelerator.device)
    readings = [read(model, LineData(client.test, clients.alphabet)) for client in clients.clients]
    if any(reading.is_plateau for reading in readings):
        stage.job.say(
            f"warning: CTC plateau of the model {whose}: nearly all frames are blank, or all lines of a client are "
            "read alike; give task.warm_start more steps"
        )
    return [reading.texts for reading in readings]


def read_with_own(stage: Stage, trained: Federated, clients: Clients, method: str) -> list[list[list[str]]]:
    """What each client's own model reads of the test lines of all: Texts of Measured."""
    found = []
    for client in clients.clients:
        with trained.model_of(client.name) as own:
            found.append(read_tests(stage, own, clients, f"{method} of {client.name}"))
    return found


def readers(model: Recogniser, clients: Clients, trained: Federated | None) -> ReadingsOf:
    """A client has the model of all, its own, or both."""

    def readings_of(client: str, lines: Sequence[Line]) -> list[Readings]:
        data = LineData(lines, clients.alphabet)
        if trained is None or not trained.federation.strategy.is_personal_model:
            return [read(model, data)]
        of_all = [read(model, data)] if is_whole(trained) else []
        with trained.model_of(client) as own:
            assert isinstance(own, Recogniser)
            return [read(own, data), *of_all]

    return readings_of


def is_whole(trained: Federated) -> bool:
    """Whether the server has a model: by FedBN, FedRep and local training parts of it never reach the server."""
    exchange = trained.federation.exchange
    return len(exchange.travelling) == len(exchange.tensors)


def quick_look(model: nn.Module, clients: Clients) -> Mapping[str, float]:
    """What is logged during training: character and line accuracy over all test lines."""
    assert isinstance(model, Recogniser)
    lines = [line for client in clients.clients for line in client.test]
    texts = read(model, LineData(lines, clients.alphabet)).texts
    scores = Scores.of(texts, [line.text for line in lines])
    return {"char": scores.character_accuracy().value, "line": scores.line_accuracy().value}


def report_outside(stage: Stage, clients: Clients) -> None:
    """What a recogniser of others reads of the test lines: over all clients, of each one's, and how large it is."""
    reader = OutsideReader()
    found = Measured.of_one(clients, [reader.read(client.test) for client in clients.clients])
    report(stage, found, OUTSIDE, stage.config.task.few_shot)
    for client, scores in zip(clients.clients, found.own, strict=True):
        stage.report(split=f"{OUTSIDE} on {client.name}", matrix_char=scores.character_accuracy())
    stage.report(split=OUTSIDE, unit="parameters", reader_parameters=reader.num_parameters())


def show_lines(stage: Stage, measured: Measured) -> None:
    """Pictures of lines: they show what clients hold, so that of own lines they are made on demand alone."""
    config = stage.config
    is_shown = config.task.show_lines == "all" or (
        config.task.show_lines == "rendered" and config.data.source == "rendered"
    )
    for number, client in enumerate(measured.clients.clients if is_shown else ()):
        sheet = draw_sheet(client.name, client.test, measured.readings[number][number])
        if sheet is not None:
            stage.picture(f"lines_{client.name}", sheet)


def report_doubts(stage: Stage, clients: Clients, readings_of: ReadingsOf) -> None:
    """A table for each client of its training lines whose label all its models contradict, in its own folder of the
    stage; without privacy also how many over all clients, and how well planted wrong labels are found.
    """
    lines, found = [], []
    for client in clients.clients:
        doubtful = doubts(client.train, readings_of(client.name, client.train), stage.config.task.confidence)
        if stage.job.is_main:
            path = stage.folder / "clients" / client.name / "label_errors.csv"
            write_doubts(path, doubtful)
            stage.output(path)
        lines += client.train
        found += doubtful
    if is_private(stage.config):  # how many is a figure of training lines, for which nothing was paid
        return
    stage.report(unit="lines", split="train", n=len(lines), doubtful_labels=len(found))
    for name, estimate in precision_and_recall(lines, found).items():
        stage.report(Result.of(name, estimate, unit="fraction", split="train"))
