"""The experiment of PKG: a small model writes a background from memory, and a black box answers with it in its prompt.

1. align: the guide learns to write the backgrounds of the alignment set (.aligning), with or without privacy.
2. generate: every guide gives each test question a background (.backgrounds): written by the guide, by the black box
   itself, found by words or by embeddings, or the gold evidence.
3. read: the black box answers, the background in its prompt (.reading). What leaves passes the border (.outbound).
4. score: answers are parsed, never guessed (.answers), and guides are compared question by question (.measure).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from privlm.adapters.adapter import count_parameters
from privlm.adapters.load import load_causal_lm
from privlm.config import Config
from privlm.fit import fit, load_trained, plan_of
from privlm.job import Job
from privlm.llm.client import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.llm.opening import open_llm
from privlm.models.loaded import Loaded
from privlm.training.next_token import NextToken

from .aligning import encode, losses
from .backgrounds import Writers, make_backgrounds
from .guide_run import ALIGN, require_same_data, trained_folder
from .measure import gold_in_words, report_accuracy, report_data, report_guide, rights
from .outbound import FILE, Corpus, Outbound
from .predictor import predictor
from .questions_data import Questions, load, locate
from .reading import Reading, read
from .told import notes, what_private_mode_hides

__all__ = ["predictor", "run"]


def run(config: Config, job: Job) -> None:
    task = config.task
    data = load(config.data)
    job.note(*data.notes, *notes(config))
    job.mark(*data.marks)
    guide = align(config, job, data) if "pkg" in task.guides else None

    corpus = Corpus(data.train) if task.private_mode else None
    border = Outbound(corpus, task.on_leak, job.directory / FILE if task.audit_outbound else None, job.run_hash[:8])
    with open_llm(config.llm, job, role="reader") as reader:
        reader.require("generate", by="task=pkg")
        reader.backend = border.around(reader.backend)
        num_test, num_done = len(data.test), 0

        with job.stage("generate") as stage, _asked(guide, config, job) as writer:
            backgrounds = {}
            for name in task.guides:
                writers = Writers(writer, reader, border)
                backgrounds[name], exhausted = make_backgrounds(stage, name, data.test, data.passages, writers)
                num_done += len(backgrounds[name])
                if exhausted:
                    stage.stop("budget_exhausted", num_done, 2 * num_test * len(task.guides))
                    return

        readings: dict[str, list[Reading]] = {}
        with job.stage("read") as stage:
            for name in task.guides:
                readings[name], exhausted = read(stage, name, data.test, backgrounds[name], reader, border)
                num_done += len(readings[name])
                if exhausted:
                    stage.stop("budget_exhausted", num_done, 2 * num_test * len(task.guides))
                    return

    with job.stage("score") as stage:
        right = {name: rights(data.test, answers) for name, answers in readings.items()}
        report_accuracy(stage, data, right)
        for name in task.guides:
            report_guide(stage, name, backgrounds[name], readings[name], is_private=task.private_mode)
        report_data(stage, data)
    job.note(*filter(None, [gold_in_words(data, readings), what_private_mode_hides(config, readings)]))


def align(config: Config, job: Job, data: Questions) -> Loaded:
    """The guide, tuned on the alignment set here or in the run that task.guide_run names."""
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    if config.task.guide_run is not None:
        require_same_data(config.task.guide_run, locate(config.data).fingerprint)
        load_trained(loaded, trained_folder(config.task.guide_run))
        loaded.model.to(job.accelerator.device)
        job.note(f"guide: aligned by the run {config.task.guide_run}, whose price in privacy is told there")
        return loaded
    train, test = (
        encode(rows, config.data.kind, loaded.tokenizer, config.model.max_length) for rows in (data.train, data.test)
    )
    job.note(
        f"{train.num_truncated:,} backgrounds to learn cut to {config.model.max_length} tokens; {train.num_skipped:,} "
        "left out, of which no token is left to learn"
    )
    trainable, total = count_parameters(loaded.model)
    plan = plan_of(config, len(train))
    with job.stage(ALIGN) as stage:
        batch_size, before = config.trainer.micro_batch_size, None
        if stage.needed:
            loaded.model.to(job.accelerator.device)
            before = losses(loaded.model, test, batch_size, job.accelerator)
        fit(stage, loaded, NextToken(), train, plan=plan)
        if stage.needed and before is not None:
            after = losses(loaded.model, test, batch_size, job.accelerator)
            stage.report(split="test", unit="nats per token", background_loss_before=before, background_loss=after)
            stage.report(split="train", unit="rows", aligned_rows=len(train), skipped_rows=train.num_skipped)
            stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)
    return loaded


@contextlib.contextmanager
def _asked(guide: Loaded | None, config: Config, job: Job) -> Iterator[LanguageModel | None]:
    """The guide as a language model of its own role, with its own record and bill; it never leaves this process."""
    if guide is None:
        yield None
        return
    with open_llm(config.llm, job, role="guide", backend=LocalBackend.of(guide)) as model:
        yield model
