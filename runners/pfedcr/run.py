"""The experiment of pFedCR, as far as one process with all lines goes: the central arm and what all arms share.

1. warm start: the server trains the recogniser on lines that it renders itself (.warm_start), which no client has a
   part in; all arms begin there.
2. train: the lines of all clients together, with or without privacy. The other arms have rounds in its place, in which
   the server tunes the output layer and clients end with models of their own (.partial_training).
3. evaluate: each client's model on its own test lines and on those of the others (.measure), beside the warm start and
   a recogniser of others; labels that all models read otherwise are listed for the client (.label_errors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from privlm.adapters.adapter import count_parameters
from privlm.config import Config, is_private
from privlm.fit import fit, plan_of
from privlm.job import Job, Stage
from privlm.results import Result
from privlm.training.trainer import Evaluation

from .ctc import CTC, Readings, read
from .data import Clients, load
from .label_errors import doubts, precision_and_recall, write_doubts
from .line import Line
from .line_data import LineData
from .measure import Measured, report, report_clients, report_empty, report_matrix
from .outside_reader import OutsideReader
from .pictures import draw_sheet
from .predictor import predictor
from .recogniser import Recogniser, load_recogniser
from .scores import Scores
from .warm_start import warm_start

__all__ = ["predictor", "run"]

WARM_START, OUTSIDE = "warm_start", "rapidocr"
"""Splits of rows beside the run's own method."""

CENTRAL = "central"

ReadingsOf = Callable[[Sequence[Line]], list[Readings]]
"""What the models of a client read of its lines."""


def run(config: Config, job: Job) -> None:
    clients = load(config)
    loaded = load_recogniser(config.model, clients.alphabet, config.seed, unrolled=is_private(config))
    model = loaded.model
    assert isinstance(model, Recogniser)
    job.note(*clients.notes, *notes(config, clients))
    train = LineData(clients.train, clients.alphabet, width=config.model.max_width if is_private(config) else None)
    plan = plan_of(config, len(train))

    is_warm = warm_start(config, job, loaded)
    with job.stage("start") as stage:
        if is_warm and stage.needed:
            before = Measured.of_one(clients, read_tests(stage, model, clients, WARM_START))
            report(stage, before, WARM_START, config.task.few_shot)

    with job.stage("train") as stage:
        evaluation = Evaluation("test", lambda model: quick_look(model, clients), metric="char")
        fit(stage, loaded, CTC(), train, evaluation=evaluation, plan=plan)

    with job.stage("evaluate") as stage:
        if stage.needed:
            evaluate(stage, model, clients)
            trainable, total = count_parameters(model)
            stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)
            num_test = sum(len(client.test) for client in clients.clients)
            stage.report(unit="lines", train_lines=len(train), test_lines=num_test)


def evaluate(stage: Stage, model: Recogniser, clients: Clients) -> None:
    """Rows, pictures and label reports of the central arm, in which one model is every client's."""
    task = stage.config.task
    measured = Measured.of_one(clients, read_tests(stage, model, clients, CENTRAL))
    report(stage, measured, CENTRAL, task.few_shot)
    report_clients(stage, measured)
    report_matrix(stage, measured, CENTRAL)
    show_lines(stage, measured)
    if task.outside_reader == OUTSIDE:
        reader = OutsideReader()
        found = Measured.of_one(clients, [reader.read(client.test) for client in clients.clients])
        report(stage, found, OUTSIDE, task.few_shot)
    report_doubts(stage, clients, lambda lines: [read(model, LineData(lines, clients.alphabet))])


def read_tests(stage: Stage, model: Recogniser, clients: Clients, split: str) -> list[list[str]]:
    """What the model reads of each client's test lines; a plateau is said, and how many lines gave nothing."""
    model.to(stage.job.accelerator.device)
    readings = [read(model, LineData(client.test, clients.alphabet)) for client in clients.clients]
    if any(reading.is_plateau for reading in readings):
        stage.job.say(
            f"warning: CTC plateau after {split}: nearly all frames are blank, or all lines of a client are read "
            "alike; give task.warm_start more steps"
        )
    texts = [reading.texts for reading in readings]
    report_empty(stage, texts, split)
    return texts


def quick_look(model: nn.Module, clients: Clients) -> Mapping[str, float]:
    """What is logged during training: character and line accuracy over all test lines."""
    assert isinstance(model, Recogniser)
    lines = [line for client in clients.clients for line in client.test]
    texts = read(model, LineData(lines, clients.alphabet)).texts
    scores = Scores.of(texts, [line.text for line in lines])
    return {"char": scores.character_accuracy().value, "line": scores.line_accuracy().value}


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
    """A table for each client of its training lines whose label all models contradict, in its own folder of the stage;
    over all clients how many, and where wrong labels were planted how well they are found.
    """
    lines, found = [], []
    for client in clients.clients:
        doubtful = doubts(client.train, readings_of(client.train), stage.config.task.confidence)
        if stage.job.is_main:
            path = stage.folder / "clients" / client.name / "label_errors.csv"
            write_doubts(path, doubtful)
            stage.output(path)
        lines += client.train
        found += doubtful
    stage.report(unit="lines", split="train", n=len(lines), doubtful_labels=len(found))
    for name, estimate in precision_and_recall(lines, found).items():
        stage.report(Result.of(name, estimate, unit="fraction", split="train"))


def notes(config: Config, clients: Clients) -> list[str]:
    """What a reader of the numbers must know of how they were made."""
    data, task = config.data, config.task
    table = "" if data.simplified is None else ", traditional forms as simplified ones"
    said = [
        f"texts are compared after NFKC, in lower case, without blanks{table}; greedy reading",
        f"alphabet of {len(clients.alphabet.symbols):,} declared characters and a blank",
        "central: one model, trained on the lines of all clients together",
    ]
    if task.start_run is not None:
        return [*said, "the warm start is that of task.start_run"]
    start = task.warm_start
    return [
        *said,
        f"warm start of {start.short_steps} and {start.line_steps} steps on lines that the server rendered, fonts "
        f"{task.server.fonts}: it reads styles of these fonts better than others",
    ]
