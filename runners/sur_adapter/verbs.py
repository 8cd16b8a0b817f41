"""`privlm sur_adapter VERB`."""

from __future__ import annotations

from privlm.cli.arguments import ArgumentParser

EPILOG = """\
fields:
  prompt=TEXT          what is to be drawn; may be given several times
  adapter=RUN|FOLDER   folder of a finished run of task=sur_adapter, or of its adapter (stages/train/model)
  out=FOLDER           a new folder, images by default
  eta=0.3              how far the adapter goes; 0 draws what the base draws; its own by default
  num_images=4 seed=0  of each prompt, from the seeds seed, seed + 1, ...
  steps= guidance_scale= negative_prompt= apply_to=cond|both
  model.path=FOLDER    where the base lies now; allow_other_base=true for one of other weights

example:
  privlm sur_adapter generate prompt="pair navy disc" adapter=runs/sur_adapter/RUN eta=0.3
"""


def generate(argv: list[str]) -> int:
    """images of prompts by a trained adapter: privlm sur_adapter generate prompt=TEXT adapter=RUN out=FOLDER"""
    parser = ArgumentParser(prog="privlm sur_adapter generate", description=generate.__doc__, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="field=value")
    from .generate import generate as drawn

    print(drawn(parser.parse_args(argv).words))
    return 0


VERBS = {"generate": generate}
