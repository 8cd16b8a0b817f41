"""The experiment of LLM-Adapters: an adapter learns worked arithmetic, and answers questions it has not seen.

1. Questions are split so that no test question is in the training data, or the run says that it leaks (.math_data).
2. The untrained model answers the test sets, and finds the worked answers of held-out rows so and so likely.
3. The adapter is trained by next-token loss on prompt and worked answer (.prompts, .encoding).
4. The trained model does the same. Answers are read by two extractors (.extract), and compared question by question.
"""

from __future__ import annotations

from privlm.adapters.adapter import count_parameters, untrained
from privlm.adapters.load import load_causal_lm
from privlm.config import Config, is_private
from privlm.data.causal_lm import CausalSplit
from privlm.fit import fit, plan_of
from privlm.job import Job
from privlm.training.likelihood import Likelihood
from privlm.training.next_token import NextToken
from privlm.training.prompted import padding_side
from privlm.training.trainer import Evaluation

from .answering import Replies, Reply, Respondent, item_of
from .base_run import read_answers
from .encoding import encode
from .math_data import MathData, load
from .measure import grade_all, report_accuracy, report_contamination, report_gain, report_likelihood
from .predictor import predictor
from .prompts import Prompts

__all__ = ["predictor", "run"]


def run(config: Config, job: Job) -> None:
    task, length = config.task, config.model.max_length
    data = load(config.data)
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    trainable, total = count_parameters(loaded.model)
    prompts = Prompts(task.prompt_style, task.prompt_mismatch, loaded.tokenizer)
    rows = {"max_length": length, "side": padding_side(loaded.model)}
    train = encode(data.train, prompts, train_on_inputs=task.train_on_inputs, **rows)
    respondent = Respondent(loaded, prompts, task)
    respondent.require_room(data.tests)
    likelihood = None
    if data.held_out:
        held_out = encode(data.held_out, prompts, train_on_inputs=False, **rows)
        likelihood = Likelihood(held_out, config, job.accelerator)
    base = _of_base_run(config, data) if task.base_run else None
    job.note(*data.notes, *_notes(config, train))
    job.mark(*data.marks)
    before = None

    if trainable:
        plan = plan_of(config, len(train))
        if likelihood or task.evaluate_base:
            with job.stage("base") as stage, untrained(loaded.model):
                loaded.model.to(job.accelerator.device)
                before = likelihood.measure(stage, loaded.model) if likelihood else None
                if task.evaluate_base:
                    base = respondent.answer_all(stage, data.tests)

        evaluation = None
        if likelihood and config.trainer.evaluate_every:
            evaluation = Evaluation("held_out", likelihood.loss, metric="loss", higher_is_better=False)
        with job.stage("train") as stage:
            objective = NextToken(only_predicted=not is_private(config))
            fit(stage, loaded, objective, train, evaluation=evaluation, plan=plan)

    with job.stage("evaluate") as stage:
        loaded.model.to(job.accelerator.device)
        respondent = Respondent(loaded, prompts, task)  # of the weights as they are now
        if likelihood:
            report_likelihood(stage, likelihood.measure(stage, loaded.model), before)
        grades = grade_all(data.tests, respondent.answer_all(stage, data.tests))
        report_accuracy(stage, grades)
        if base is not None:
            base_grades = grade_all(data.tests, base)
            report_gain(stage, grades, base_grades)
            report_accuracy(stage, base_grades, prefix="base_")
        report_contamination(stage, data.overlaps)
        stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)


def _of_base_run(config: Config, data: MathData) -> Replies:
    items = {name: [item_of(*row) for row in enumerate(questions)] for name, questions in data.tests.items()}
    return {name: [Reply.of(*row) for row in rows] for name, rows in read_answers(config, items).items()}


def _notes(config: Config, train: CausalSplit) -> list[str]:
    """What a reader of the numbers must know of how they were made."""
    task = config.task
    decoding = "greedy" if task.num_beams == 1 else f"{task.num_beams} beams"
    notes = [
        f"{train.num_truncated:,} training rows cut to {config.model.max_length} tokens; {train.num_skipped:,} left "
        "out, of which no token is left to learn",
        f"prompts {task.prompt_style}, {decoding}, at most {task.max_new_tokens} new tokens; accuracy_upstream reads "
        "answers as the released scorer does, accuracy_strict as README.md says",
    ]
    if task.prompt_mismatch == "upstream":
        notes.append("task.prompt_mismatch=upstream: prompts are laid out otherwise in evaluation than in training")
    return notes
