"""`privlm build shapes_cnn`: another second judge like the one that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privlm.errors import UsageError
from privlm.schema import of_words, require_packages, setting

LEAST_RIGHT = 0.98
"""Of fresh renders; below it a judge judges nothing."""


@dataclass
class ShapesCnnConfig:
    """What may be said of the training of shapes_cnn. steps: of 64 images."""

    seed: int = setting(at_least=0, below=1 << 20, default=0)
    steps: int = setting(above=0, default=2_500)


def shapes_cnn(folder: Path, words: Sequence[str]) -> str:
    """shapes_cnn, the network that judges images of coloured shapes: seed=0 steps=2500 (minutes).

    words: its two fields. Returns what was made, in a sentence. Raises UsageError for an unknown field or value, and
    for a network that names too many fresh renders wrong.
    """
    config = of_words(ShapesCnnConfig, "shapes_cnn", words)
    require_packages("privlm build shapes_cnn", "PIL", extra="diffusion")
    from privlm.diffusion.classifier import Classifier, load_classifier, save_classifier
    from privlm.diffusion.classifier_training import share_named_right, train

    model = train(config.seed, config.steps)
    right = share_named_right(Classifier(model, digest=""))
    if right < LEAST_RIGHT:
        raise UsageError(
            f"steps={config.steps}: the network names {right:.1%} of fresh renders right, and {LEAST_RIGHT:.0%} is the "
            "least of a judge; give it more steps"
        )
    save_classifier(model, folder)
    return f"shapes_cnn {load_classifier(folder).digest[:12]}, which names {right:.2%} of fresh renders right"
