"""The tuned model of a run at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from privlm.adapters.adapter import merge_adapter
from privlm.adapters.load import load_causal_lm
from privlm.config import Config
from privlm.data.contamination import words_of
from privlm.data.instructions import TEMPLATES, Instruction, load_instructions
from privlm.data.table import is_text, names_in_files
from privlm.errors import UsageError
from privlm.federated.kept import is_folded, kept
from privlm.kept_model import load_model
from privlm.llm.local.answering import Asked
from privlm.llm.local.export import export_causal_lm
from privlm.metrics.estimate import Estimate
from privlm.metrics.rouge import rouge_l
from privlm.metrics.shares import share
from privlm.models.loaded import Loaded
from privlm.predictor import Row
from privlm.rundir import MODEL, TRAINING
from privlm.training.likelihood import row_losses

from .answering import Reply, answered_rows, respondent
from .encoding import encode
from .measure import perplexity

SAMPLE = "Name three trees that keep their leaves in winter."
"""An instruction of nobody, on which an exported model must agree with the trained one."""

BATCH = 64  # instructions that are answered together


def predictor(config: Config, folder: Path) -> Assistant:
    """The model of the finished run in `folder`. Raises UsageError where its files are absent or have changed."""
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    trained = folder / "stages" / "train" / MODEL
    if (trained / TRAINING).exists() or any(parameter.requires_grad for parameter in loaded.model.parameters()):
        load_model(kept(config.federated, loaded), trained)
    return Assistant(config, loaded)


class Assistant:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, loaded: Loaded) -> None:
        self.config = config
        self.loaded = loaded
        self.template = TEMPLATES[config.data.template]
        self.respondent = respondent(loaded, config.task)

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The answer to each instruction, and whether it was cut. Raises UsageError for a row without one."""
        batch: list[Asked] = []
        for number, row in enumerate(rows, start=1):
            batch.append(Asked(self.template.prompt(self._instruction(row, number)), f"row {number}"))
            if len(batch) == BATCH:
                yield from self._answers(batch)
                batch = []
        yield from self._answers(batch)

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """Perplexity of the responses and ROUGE-L of the answers on the evaluation splits of instruction data."""
        found = {}
        for name, rows in load_instructions(data).evaluation.items():
            split = encode(rows, self.template, self.loaded, self.config, train_on_inputs=False)
            places, size = list(range(len(split))), self.config.trainer.micro_batch_size
            batches = [places[start : start + size] for start in places[::size]]
            losses = [loss for batch in batches for loss in row_losses(self.loaded.model, split, batch)]
            tokens = split.num_predicted
            measured: dict[str, Estimate | float] = {"perplexity": perplexity(np.array(losses) * tokens, tokens)}
            if asked := answered_rows(rows, split, self.config.task.num_generated):
                measured["rouge_l"] = self._rouge_l(asked)
            found[name] = measured
        return found

    def export(self, folder: Path) -> None:
        """Writes the model (privlm.llm.local.export), with `prompt.txt`: how it was asked."""
        sample, asked = (self.template.prompt(Instruction(text, "", "")) for text in (SAMPLE, "{instruction}"))
        loaded = self.loaded
        if is_folded(self.config.federated):  # the rounds have changed the base, which no adapter holds
            loaded = replace(loaded, model=merge_adapter(loaded.model))
        export_causal_lm(loaded, self.config.model, folder, sample)
        (folder / "prompt.txt").write_text(asked, encoding="utf-8")

    def _rouge_l(self, rows: list[Instruction]) -> Estimate:
        asked = [Asked(self.template.prompt(row), f"row {number}") for number, row in enumerate(rows, start=1)]
        texts = [answer["answer"] for answer in self._answers(asked)]
        return share([rouge_l(words_of(text), words_of(row.response)) for text, row in zip(texts, rows, strict=True)])

    def _answers(self, asked: list[Asked]) -> Iterator[Row]:
        found = dict(self.respondent.answers(asked))
        for place in range(len(asked)):
            reply = Reply.of(found[place].text, found[place].status)
            yield {"answer": reply.text, "status": reply.status}

    def _instruction(self, row: Row, number: int) -> Instruction:
        def field(name: str) -> Any:
            names = names_in_files(name, self.config.data.aliases)
            return next((row[known] for known in names if row.get(known) is not None), "")

        instruction, context = field("instruction"), field("context")
        if not is_text(instruction) or not instruction.strip():
            raise UsageError(f"row {number}: no text in column 'instruction'; the columns are {', '.join(row)}")
        if not is_text(context):
            raise UsageError(f"row {number}: no text in column 'context'")
        return Instruction(instruction, context, "")
