"""What a finished run can do with its trained model: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from privlm.metrics.estimate import Estimate

Row = Mapping[str, Any]
"""Column -> value; of an answer, values that JSON can hold."""


class Predictor(Protocol):
    """A trained model, loaded. A task's run.py makes it from a run: `predictor(config, folder) -> Predictor`.

    config: that of the run, resolved. folder: the run directory, with the stages' files in folder/stages/STAGE.
    """

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """One answer a row, in order. Raises UsageError for a row without a column that it needs, naming the column."""
        ...

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """Split -> metric -> value on the data set of a data config.

        Raises UsageError for data that the model cannot be measured on (other labels, say).
        """
        ...

    def export(self, folder: Path) -> None:
        """Writes the model into an empty folder, in a form that its library loads without PrivLM."""
        ...
