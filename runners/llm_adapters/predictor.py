"""The trained model of a run at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from privlm.adapters.load import load_causal_lm
from privlm.config import Config
from privlm.data.table import is_text, names_in_files
from privlm.errors import UsageError
from privlm.fit import load_trained
from privlm.llm.local.export import export_causal_lm
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share
from privlm.models.loaded import Loaded
from privlm.predictor import Row
from privlm.rundir import MODEL, TRAINING

from .answering import Respondent
from .extract import strict_letter, strict_number
from .math_data import load
from .measure import grade
from .prompts import Prompts
from .questions import Question, listed_options

SAMPLE = "Tom has 3 apples and buys 4 more. How many apples has he now?"
"""A question of nobody, on which an exported model must agree with the trained one."""

BATCH = 64  # questions that are asked together


def predictor(config: Config, folder: Path) -> Solver:
    """The model of the finished run in `folder`. Raises UsageError where its files are absent or have changed."""
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    trained = folder / "stages" / "train" / MODEL
    if (trained / TRAINING).exists() or any(parameter.requires_grad for parameter in loaded.model.parameters()):
        load_trained(loaded, trained)
    return Solver(config, loaded)


class Solver:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, loaded: Loaded) -> None:
        self.config = config
        self.loaded = loaded
        self.prompts = Prompts(config.task.prompt_style, config.task.prompt_mismatch, loaded.tokenizer)
        self.respondent = Respondent(loaded, self.prompts, config.task)

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The answer to each question as the strict extractor reads it (null where it reads none), what the model
        wrote, and whether that was cut. Raises UsageError for a row without a question.
        """
        batch: list[Question] = []
        for number, row in enumerate(rows, start=1):
            batch.append(self._question(row, number))
            if len(batch) == BATCH:
                yield from self._answers(batch)
                batch = []
        yield from self._answers(batch)

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """Accuracy by both extractors on each test set of math questions."""
        if not hasattr(data, "test_sets"):
            raise UsageError(f"data: '{data.name}' is data of another kind; this model takes math questions")
        found = {}
        tests = load(data).tests
        self.respondent.require_room(tests)
        for name, questions in tests.items():
            graded = grade(questions, self.respondent.replies(questions))
            found[name] = {"accuracy_strict": share(graded.strict), "accuracy_upstream": share(graded.upstream)}
        return found

    def export(self, folder: Path) -> None:
        """Writes the model (privlm.llm.local.export), with `prompt.txt`: how it was asked."""
        export_causal_lm(self.loaded, self.config.model, folder, self.prompts.evaluation(_plain_question(SAMPLE)))
        text = self.prompts.evaluation(_plain_question("{question}"))
        (folder / "prompt.txt").write_text(text, encoding="utf-8")

    def _answers(self, questions: list[Question]) -> Iterator[Row]:
        for question, reply in zip(questions, self.respondent.replies(questions), strict=True):
            read = strict_letter(reply.text, question.options) if question.is_choice else strict_number(reply.text)
            answer = _number_as_text(read) if isinstance(read, Fraction) else read
            yield {"answer": answer, "text": reply.text, "status": reply.status}

    def _question(self, row: Row, number: int) -> Question:
        def field(name: str) -> Any:
            names = names_in_files(name, self.config.data.aliases)
            return next((row[known] for known in names if row.get(known) is not None), "")

        instruction, context = field("instruction"), field("input")
        if not is_text(instruction) or not instruction.strip():
            raise UsageError(f"row {number}: no question in column 'instruction'; the columns are {', '.join(row)}")
        if not is_text(context):
            raise UsageError(f"row {number}: no text in column 'input'")
        return _plain_question(instruction, context, where=f"row {number}")


def _plain_question(instruction: str, context: str = "", where: str = "") -> Question:
    """A question whose answer is not known."""
    return Question(instruction, context, "", "", listed_options(instruction), False, where)


def _number_as_text(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else repr(float(number))
