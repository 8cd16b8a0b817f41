"""The experiment of FedIT: one model of many clients' instructions, measured on rows that none of them has.

1. base: how likely the untrained model finds the responses of the held-out rows.
2. train: an adapter learns the responses: of all rows (centralised), of one client's alone (task.only_client), or of
   clients that send their adapters to a server (federated=). Each arm says how many rows and steps it has taken.
3. evaluate: perplexity of the held-out responses, answers to held-out rows (ROUGE-L, exact match), and answers to
   questions of nobody.
4. judge: a language model judges these, alone or against those of another run, in both orders.
"""

from __future__ import annotations

from privlm.adapters.adapter import count_parameters, untrained
from privlm.adapters.load import load_causal_lm
from privlm.config import Config
from privlm.data.causal_lm import CausalSplit
from privlm.data.instructions import Instruction
from privlm.federated.federation import Federation
from privlm.federated.reporting import report_budget, report_rounds
from privlm.federated.rounds import rounds
from privlm.federated.schema import is_federated
from privlm.fit import fit, plan_of
from privlm.job import Job
from privlm.llm.opening import open_llm
from privlm.models.loaded import Loaded
from privlm.privacy.schema import is_private_by_record
from privlm.training.likelihood import Likelihood
from privlm.training.next_token import NextToken
from privlm.training.trainer import Evaluation

from .answering import Reply, answer_questions, answer_rows, answered_rows, asked, require_room, respondent
from .clients import deal, encoded
from .compared import EVALUATE, read_answers
from .encoding import encode
from .judge import ask_judge, require_judge
from .measure import report_answers, report_judged, report_perplexity
from .predictor import predictor
from .questions import Question, read_questions
from .splits import load

__all__ = ["federation", "predictor", "run"]


def run(config: Config, job: Job) -> None:
    task = config.task
    data = load(config)
    questions = read_questions(task.questions).questions if task.questions else []
    theirs = read_answers(config, questions) if task.compare_with else None
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    train = encode(data.train, data.template, loaded, config, train_on_inputs=task.train_on_inputs)
    federated = clients(config, loaded, data.train, train) if is_federated(config) else None  # may freeze a part
    trainable, total = count_parameters(loaded.model)
    test = encode(data.test, data.template, loaded, config, train_on_inputs=False)
    assistant = respondent(loaded, task)
    require_room(config, assistant)
    assistant.require_room(asked(questions, data.template).values())
    require_judge(config, job)
    job.note(*data.notes, *_notes(config, train, test))
    likelihood = Likelihood(test, config, job.accelerator)
    before = None

    if trainable:
        plan = None if federated is not None else plan_of(config, len(train))
        with job.stage("base") as stage, untrained(loaded.model):
            loaded.model.to(job.accelerator.device)
            before = likelihood.measure(stage, loaded.model)

        evaluation = None
        if config.trainer.evaluate_every or federated is not None:
            evaluation = Evaluation("test", likelihood.loss)  # of no step the best: these rows test
        with job.stage("train") as stage:
            if federated is not None:
                report_rounds(stage, rounds(stage, federated, evaluation=evaluation))
            else:
                steps = fit(stage, loaded, objective_of(config), train, evaluation=evaluation, plan=plan).steps
                report_budget(stage, steps=steps, rows_seen=steps * config.trainer.batch_size)
            stage.report(split="train", unit="rows", training_rows=len(train), left_out=train.num_skipped)
            stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)

    with job.stage(EVALUATE) as stage:
        loaded.model.to(job.accelerator.device)
        rows = [data.test[place] for place in test.kept]
        report_perplexity(stage, rows, test.num_predicted, likelihood.measure(stage, loaded.model), before)
        generated = answered_rows(data.test, test, task.num_generated)
        report_answers(stage, generated, answer_rows(stage, assistant, generated, data.template))
        ours = answer_questions(stage, assistant, questions, data.template)

    if task.judge != "none":
        judge(config, job, questions, ours, theirs)


def federation(config: Config) -> Federation:
    """The clients of a run, in whatever process (federated.engine)."""
    data = load(config)
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    train = encode(data.train, data.template, loaded, config, train_on_inputs=config.task.train_on_inputs)
    return clients(config, loaded, data.train, train)


def clients(config: Config, loaded: Loaded, rows: list[Instruction], train: CausalSplit) -> Federation:
    """train: `rows` as tokens."""
    return Federation(config, loaded, objective_of(config), encoded(deal(rows, config), train))


def objective_of(config: Config) -> NextToken:
    """Under privacy by record each row is computed as if it were alone."""
    return NextToken(only_predicted=not is_private_by_record(config))


def judge(config: Config, job: Job, questions: list[Question], ours: list[Reply], theirs: list[str] | None) -> None:
    """Where asking ends early the stage stays undone, and the same command goes on."""
    with job.stage("judge") as stage, open_llm(config.llm, job, role="judge") as model:
        judged = ask_judge(stage, model, questions, [reply.text for reply in ours], theirs)
        report_judged(stage, judged)
        if judged.stopped is not None:
            stage.stop(judged.stopped, len(judged.lines), judged.num_asked)


def _notes(config: Config, train: CausalSplit, test: CausalSplit) -> list[str]:
    """What a reader of the numbers must know of how they were made."""
    length = config.model.max_length
    loss = "prompt and response" if config.task.train_on_inputs else "the response alone"
    return [
        f"{name} rows: {split.num_truncated:,} cut to {length} tokens, without an end of text; {split.num_skipped:,} "
        "left out, of which no token is left to predict"
        for name, split in {"training": train, "test": test}.items()
    ] + [
        f"template {config.data.template}, the loss is of {loss}; answers are greedy, at most "
        f"{config.task.max_new_tokens} new tokens"
    ]
