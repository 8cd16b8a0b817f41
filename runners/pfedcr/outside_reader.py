"""A recogniser of others, a yardstick and a test of rendered labels: RapidOCR's PP-OCR, from its package alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .alphabet import normalised
from .line import Line
from .onnx_size import num_parameters

OPTIONS: dict[str, Any] = {
    "Global.log_level": "error",
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
}
STEPS = {"use_det": False, "use_cls": False, "use_rec": True}
"""A line is read as it is: nothing looks for lines in it, nothing turns it."""


class OutsideReader:
    """Needs the packages rapidocr and onnxruntime; downloads nothing, since the package holds its models."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        self._engine: Any = RapidOCR(params=OPTIONS)

    def read(self, lines: Sequence[Line]) -> list[str]:
        """Normalised texts; empty where it reads nothing."""
        return [self._text(line.image) for line in lines]

    def num_parameters(self) -> int:
        """Of the recogniser that reads lines; what looks for lines in a page is not counted. After a first `read`."""
        return num_parameters(Path(self._engine.text_rec.session.session._model_path))

    def _text(self, image: np.ndarray) -> str:
        found = self._engine(np.repeat(image[:, :, None], 3, axis=2), **STEPS)
        return normalised("".join(found.txts or ()))
