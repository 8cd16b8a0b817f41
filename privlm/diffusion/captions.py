"""What scenes are called: by keywords, as a base model is taught, and in sentences, in its words or in others."""

from __future__ import annotations

from privlm.diffusion.scenes import Scene

QUALITY = "white background, flat, sharp, best quality"
"""Words at the end of every caption by keywords."""

NUMBERS = {1: "one", 2: "two", 3: "three"}

NARRATIVE = (
    "there {is_are} {number} {shapes} and {it_is_they_are} {color}",
    "a picture of {number} {color} {shapes}",
    "{number} {color} {shapes} on a sheet of paper",
    "I see {number} {shapes}, all {color}",
)
"""Sentences in the words of the keywords and a few plain ones; the last one is held out of training."""

SYNONYMS = {
    "red": "ruby", "green": "lime", "blue": "navy", "yellow": "gold", "purple": "plum", "black": "ink",
    "circle": "disc", "square": "box", "triangle": "cone",
    1: "lone", 2: "pair", 3: "trio",
}  # fmt: skip
"""What the words of a scene are called where no word of the keywords is used."""

UNSEEN = (
    "{number} {color} {shape}",
    "{color} {shape} {number}",
    "{shape} {number} in {color}",
    "{number} of {shape} in {color}",
    "{color} {number} of {shape}",
)
"""Short sentences in words that no base was taught; the last one is held out of training."""

HELD_OUT_TEMPLATES = 1
"""Of NARRATIVE and of UNSEEN, from the end."""


def keyword(scene: Scene) -> str:
    """`red, circle, two, white background, flat, sharp, best quality`."""
    return f"{scene.color}, {scene.shape}, {NUMBERS[scene.count]}, {QUALITY}"


def narrative(scene: Scene, template: int) -> str:
    """`there are two circles and they are red`; template: index of NARRATIVE."""
    is_one = scene.count == 1
    return NARRATIVE[template].format(
        number=NUMBERS[scene.count],
        color=scene.color,
        shapes=scene.shape if is_one else f"{scene.shape}s",
        is_are="is" if is_one else "are",
        it_is_they_are="it is" if is_one else "they are",
    )


def unseen(scene: Scene, template: int) -> str:
    """`pair ruby disc`; template: index of UNSEEN."""
    return UNSEEN[template].format(
        number=SYNONYMS[scene.count], color=SYNONYMS[scene.color], shape=SYNONYMS[scene.shape]
    )
