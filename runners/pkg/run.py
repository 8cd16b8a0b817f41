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
from privlm.config import Config
from privlm.fit import fit, load_trained, plan_of
from privlm.job import Job
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm

from .aligning import losses, report_losses
from .backgrounds import Writers, make_backgrounds
from .guide import Guide, load_guide
from .guide_run import ALIGN, require_same_data, trained_folder
from .measure import gold_in_words, report_accuracy, report_data, report_guide, rights
from .outbound import FILE, Corpus, Outbound
from .predictor import predictor
from .questions_data import Questions, load, locate
from .reading import Reading, read
from .told import notes, price_of_guide, what_is_cut, what_private_mode_hides

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

        with job.stage("generate") as stage, _asked(guide, config, job, data) as writer:
            backgrounds = {}
            writers = Writers(writer, reader, border, *([guide.sample_of] if guide else []))
            for name in task.guides:
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


def align(config: Config, job: Job, data: Questions) -> Guide:
    """The guide, tuned on the alignment set here or in the run that task.guide_run names."""
    guide = load_guide(config)
    model = guide.loaded.model
    if config.task.guide_run is not None:
        require_same_data(config.task.guide_run, locate(config.data).fingerprint)
        load_trained(guide.loaded, trained_folder(config.task.guide_run))
        model.to(job.accelerator.device)
        job.note(price_of_guide(config.task.guide_run))
        return guide
    train, texts = guide.encode(data.train)
    test = guide.encode(data.test)[0] if any(row.background for row in data.test) else None
    job.note(what_is_cut(texts, config.model.max_length))
    trainable, total = count_parameters(model)
    plan = plan_of(config, len(train))
    with job.stage(ALIGN) as stage:
        measured = (guide.objective, config.trainer.micro_batch_size, job.accelerator)
        model.to(job.accelerator.device)
        before = losses(model, test, *measured) if stage.needed and test is not None else None
        fit(stage, guide.loaded, guide.objective, train, plan=plan)
        if before is not None and test is not None:
            report_losses(stage, before, losses(model, test, *measured))
        stage.report(split="train", unit="rows", aligned_rows=len(train), skipped_rows=texts.num_skipped)
        stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)
    return guide


@contextlib.contextmanager
def _asked(guide: Guide | None, config: Config, job: Job, data: Questions) -> Iterator[LanguageModel | None]:
    """The guide as a language model of its own role, with its own record and bill; it never leaves this process."""
    if guide is None:
        yield None
        return
    with open_llm(config.llm, job, role="guide", backend=guide.backend(data.test)) as model:
        yield model
