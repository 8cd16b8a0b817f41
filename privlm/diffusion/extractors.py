"""What turns images into features for distances, by name: shapes_cnn, clip, inception, or a function of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from privlm.errors import UsageError
from privlm.report.store import nearest

MICRO_BATCH = 64


@dataclass(frozen=True)
class Extractor:
    """name: as it stands in the columns of tables. function: images [N, H, W, 3] -> features [N, D]."""

    name: str
    function: Callable[[Any], Any]

    def __call__(self, images: Any) -> np.ndarray:
        """Features float64 [N, D]. Raises UsageError where the function gives something else."""
        features = np.asarray(self.function(images), dtype=np.float64)
        if features.ndim != 2 or len(features) != len(images):
            raise UsageError(
                f"the extractor {self.name} gave features of shape {list(features.shape)} for {len(images)} images: it "
                "must give [N, D]"
            )
        return features


def open_extractor(name: str, path: str | Path | None = None) -> Extractor:
    """The extractor of a name, or of a dotted path such as my_package.features, a function of images [N, H, W, 3].

    path: of clip the folder of a CLIPModel, of inception the file of its weights; shapes_cnn is shipped.

    Raises UsageError for an unknown name, for what is not installed, and for a path that is missing.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name](path)
    if "." not in name:
        known = ", ".join(EXTRACTORS)
        raise UsageError(
            f"no extractor '{name}'{nearest(name, EXTRACTORS)}: take one of {known}, or the dotted path of a function"
        )
    return Extractor(name, _imported(name))


def _shapes_cnn(path: str | Path | None) -> Extractor:
    from privlm.diffusion.classifier import EMBEDDED, load_classifier

    return Extractor("shapes_cnn", load_classifier(EMBEDDED if path is None else Path(path)).features)


def _clip(path: str | Path | None) -> Extractor:
    from privlm.diffusion.clip import open_clip

    if path is None:
        raise UsageError("the extractor clip needs the local folder of a CLIPModel: give its path")
    clip = open_clip(path)
    return Extractor(f"clip:{clip.name}", clip.embed_images)


def _inception(path: str | Path | None) -> Extractor:
    """Inception v3 of the published figures, by torchmetrics, whose weights are not to be had without a download."""
    absent = [name for name in ("torchmetrics", "torch_fidelity") if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"the extractor inception needs {' and '.join(absent)}: pip install torchmetrics torch-fidelity, or take "
            "shapes_cnn or clip"
        )
    if path is None or not Path(path).is_file():
        raise UsageError(
            "the extractor inception needs the file of its weights, pt_inception-2015-12-05-6726825d.pth, which is "
            f"never downloaded: {'give its path' if path is None else f'{path} is no file'}"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    return Extractor("inception", _in_bytes(NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))))


def _in_bytes(network: Any) -> Callable[[Any], np.ndarray]:
    """A network of images uint8 [B, 3, H, W] as a function of images [N, H, W, 3]."""
    import torch

    from privlm.diffusion.pixels import unit_pixels

    @torch.inference_mode()
    def features(images: Any) -> np.ndarray:
        pixels = np.round(unit_pixels(images) * 255).astype(np.uint8)
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return torch.cat([network(part).flatten(1) for part in inputs.split(MICRO_BATCH)]).numpy()

    return features


def _imported(path: str) -> Callable[[Any], Any]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"the extractor {path} cannot be imported ({error}): give package.module.function") from error
    if not callable(function):
        raise UsageError(f"the extractor {path} is no function of images")
    return function


EXTRACTORS: dict[str, Callable[[str | Path | None], Extractor]] = {
    "shapes_cnn": _shapes_cnn, "clip": _clip, "inception": _inception,
}  # fmt: skip
"""Name -> opened from a path."""
