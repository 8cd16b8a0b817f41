"""The experiment of pFedCR.

1. warm start: the server trains the recogniser on lines that it renders itself (.warm_start), which no client has a
   part in; all arms begin there.
2. train: rounds in which clients learn their lines and a server averages (federated=). By the paper's method the server
   tunes the output layer after each average, and clients end with models of their own (.strategy); the baselines are
   those of privlm.federated. Without rounds: the lines of all clients together, the central arm.
3. evaluate: each client's model on its own test lines and on those of the others (.measure), beside the model of all,
   the warm start and a recogniser of others; labels that a client's models read otherwise are listed for it.
"""

from __future__ import annotations

from privlm.adapters.adapter import count_parameters
from privlm.config import Config, is_private_by_record
from privlm.federated.federation import Federation
from privlm.federated.outcome import Federated
from privlm.federated.reporting import report_budget, report_rounds
from privlm.federated.rounds import rounds
from privlm.federated.schema import is_federated
from privlm.fit import fit, plan_of
from privlm.job import Job
from privlm.models.loaded import Loaded
from privlm.training.trainer import Evaluation

from .config import WARM_START
from .ctc import CTC
from .data import Clients, load
from .evaluation import evaluate, quick_look, read_tests
from .federated import federation_of, to_train_on
from .measure import Measured, report
from .notes import notes
from .predictor import predictor
from .recogniser import Recogniser, load_recogniser
from .warm_start import warm_start

__all__ = ["federation", "predictor", "run"]


def run(config: Config, job: Job) -> None:
    clients = load(config)
    loaded = recogniser(config, clients)
    model = loaded.model
    assert isinstance(model, Recogniser)
    job.note(*clients.notes, *notes(config, clients))
    lines = to_train_on(config, clients, clients.train)
    plan = None if is_federated(config) else plan_of(config, len(lines))

    is_warm = warm_start(config, job, loaded)
    with job.stage("start") as stage:
        if is_warm and stage.needed:
            before = Measured.of_one(clients, read_tests(stage, model, clients, WARM_START))
            report(stage, before, WARM_START, config.task.few_shot)

    trained: Federated | None = None
    with job.stage("train") as stage:
        evaluation = Evaluation("test", lambda model: quick_look(model, clients), metric="char")
        if is_federated(config):
            trained = rounds(stage, federation_of(config, loaded, clients), evaluation=evaluation)
            report_rounds(stage, trained)
        else:
            steps = fit(stage, loaded, CTC(), lines, evaluation=evaluation, plan=plan).steps
            report_budget(stage, steps=steps, rows_seen=steps * config.trainer.batch_size)

    with job.stage("evaluate") as stage:
        if stage.needed:
            evaluate(stage, model, clients, trained)
            trainable, total = count_parameters(model)
            stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)
            num_test = sum(len(client.test) for client in clients.clients)
            stage.report(unit="lines", train_lines=len(lines), test_lines=num_test)


def recogniser(config: Config, clients: Clients) -> Loaded:
    """Untrained. Under privacy by record its recurrent layers are of Linear layers."""
    return load_recogniser(config.model, clients.alphabet, config.seed, unrolled=is_private_by_record(config))


def federation(config: Config) -> Federation:
    """The clients of a run, in whatever process (federated.engine); what is trained comes with the first message."""
    clients = load(config)
    return federation_of(config, recogniser(config, clients), clients)
