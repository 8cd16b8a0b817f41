"""What `privlm build` makes for text-to-image models; what is heavy is imported when it is asked for."""

from __future__ import annotations

from privlm.diffusion.classifier_builder import shapes_cnn
from privlm.diffusion.shapes_builder import shapes
from privlm.diffusion.tiny.builder import tiny_sd

BUILDERS = {"shapes": shapes, "shapes_cnn": shapes_cnn, "tiny_sd": tiny_sd}
