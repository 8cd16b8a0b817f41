"""A finished run at work: its guide writes, its black box answers (`privlm predict|evaluate|export RUN`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from privlm.config import Config
from privlm.data.table import is_text, names_in_files
from privlm.errors import UsageError
from privlm.fit import load_trained
from privlm.llm.client import LanguageModel
from privlm.llm.local.export import export_causal_lm
from privlm.llm.opening import label, open_backend
from privlm.llm.types import Answer
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share
from privlm.predictor import Row
from privlm.rundir import MODEL

from .answers import is_right, read_answer
from .asking import Asking, Prompt
from .guide import Guide, load_guide
from .guide_run import ALIGN, trained_folder
from .outbound import Corpus, Outbound
from .prompts import guide_prompt, read_prompt
from .questions import Question
from .questions_data import load

SAMPLE = "Which gas do plants take from the air?"
"""A question of nobody, on which an exported guide must agree with the trained one."""

BATCH = 32  # questions that are asked together


def predictor(config: Config, folder: Path) -> Guided:
    """Guide and black box of the finished run in `folder`. Raises UsageError for a run that has aligned no guide."""
    if "pkg" not in config.task.guides:
        raise UsageError(f"{folder}: this run has aligned no guide (task.guides without pkg), so it has no model")
    guide = load_guide(config)
    given = config.task.guide_run
    load_trained(guide.loaded, folder / "stages" / ALIGN / MODEL if given is None else trained_folder(given))
    return Guided(config, guide)


class Guided:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, guide: Guide) -> None:
        self.config = config
        self.guide = guide
        corpus = Corpus(load(config.data).train) if config.task.private_mode else None
        self.border = Outbound(corpus, config.task.on_leak, None, "predict")

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """background, and answer as it was read (null where nothing could be), text and status of the black box.

        Raises UsageError for a row without a question, ServiceError where the black box does not answer.
        """
        with self._reader() as reader:
            batch: list[Question] = []
            for number, row in enumerate(rows, start=1):
                batch.append(self._question(row, number))
                if len(batch) == BATCH:
                    yield from self._answers(batch, reader)
                    batch = []
            yield from self._answers(batch, reader)

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """Accuracy with the guide on the test split of a data configuration."""
        if getattr(data, "kind", None) != self.config.data.kind:
            raise UsageError(f"data: '{data.name}' does not hold questions of data.kind={self.config.data.kind}")
        questions = load(data).test
        with self._reader() as reader:
            answers = list(self._answers(questions, reader))
        right = [is_right(found["answer"], row) for found, row in zip(answers, questions, strict=True)]
        unparsed = sum(found["answer"] is None for found in answers)
        accuracy = share(right, units=[row.group for row in questions])
        return {"test": {"accuracy": accuracy, "unparsed": unparsed / len(answers)}}

    def export(self, folder: Path) -> None:
        """Writes the guide (privlm.llm.local.export), with `prompt.txt`: how it is asked.

        Raises UsageError for a guide that sees images: what fuses them is no part of transformers' model.
        """
        if self.guide.sight is not None:
            raise UsageError("task.vision: a guide that sees images has layers that transformers does not know")
        sample, asked = (guide_prompt(_plain(text), self.config.data.kind) for text in (SAMPLE, "{question}"))
        export_causal_lm(self.guide.loaded, self.config.model, folder, sample)
        (folder / "prompt.txt").write_text(asked, encoding="utf-8")

    @contextlib.contextmanager
    def _reader(self) -> Iterator[LanguageModel]:
        """The black box, behind the border; nothing is recorded."""
        backend = open_backend(self.config.llm)
        with contextlib.closing(backend):
            yield LanguageModel(self.border.around(backend), cache="off", label=label(self.config.llm))

    def _answers(self, questions: list[Question], reader: LanguageModel) -> Iterator[Row]:
        task, kind = self.config.task, self.config.data.kind
        writer = LanguageModel(self.guide.backend(questions), cache="off", label="guide")
        writing = Asking(writer, "pkg", max_tokens=task.background_max_tokens)
        prompts = [Prompt(guide_prompt(row, kind), row, sample=self.guide.sample_of(row)) for row in questions]
        texts = [answer.text.strip() for answer in writer.generate([writing.request(one) for one in prompts])]
        reading = Asking(reader, "pkg reads", max_tokens=task.answer_max_tokens, chat=task.chat, border=self.border)
        asked = [
            Prompt(read_prompt(row, kind, "pkg", text), row, "Answer")
            for row, text in zip(questions, texts, strict=True)
        ]
        reviewed = [self.border.review(reading.whole(one), one.about).text for one in asked]
        sent = [place for place, text in enumerate(reviewed) if text is not None]
        replies = dict(
            zip(sent, reader.generate([reading.request(asked[one], reviewed[one]) for one in sent]), strict=True)
        )
        for place, (row, text) in enumerate(zip(questions, texts, strict=True)):
            reply = replies.get(place, Answer("", "ok", detail="blocked"))
            status = "blocked" if place not in replies else reply.status
            answer = read_answer(reply.text, row) if status in ("ok", "length") else None
            yield {"background": text, "answer": answer, "text": reply.text.strip(), "status": status}

    def _question(self, row: Row, number: int) -> Question:
        def field(name: str) -> Any:
            names = [*names_in_files(name, self.config.data.aliases), *(["text"] if name == "question" else [])]
            return next((row[known] for known in names if row.get(known) is not None), None)

        question, options, context = field("question"), field("options") or [], field("context") or ""
        image = field("image") or ""
        if not is_text(question) or not question.strip():
            raise UsageError(f"row {number}: no question in column 'question'; the columns are {', '.join(row)}")
        if not isinstance(options, list) or not all(map(is_text, options)) or not all(map(is_text, (context, image))):
            raise UsageError(f"row {number}: 'options' is a list of texts, 'context' and 'image' are texts")
        return _plain(question, tuple(options), context, image, self.config.data.kind == "claim", f"row {number}")


def _plain(
    question: str,
    options: tuple[str, ...] = (),
    context: str = "",
    image: str = "",
    is_claim: bool = False,
    where: str = "",
) -> Question:
    """A question whose answer is not known."""
    return Question(where, question.strip(), (), options, "", context.strip(), (), where, image, is_claim, where)
