"""What the HTML pages share: one look, a file each that asks nothing of the network, and what a reader must be told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from privlm.content import OWN
from privlm.report.store import RunRecord

TEMPLATES = Path(__file__).parent / "templates"
SCALES = {
    "small": "Small scale: not the sizes of the paper. These figures compare with nothing published.",
    "smoke": "Smoke run: tiny random models. It proves that the plumbing works and says nothing about a method.",
}
MARKS = {
    OWN["data"]: "Own data: not the rows that the data set of the configuration names. These figures stand beside no "
    "others of that name.",
    OWN["model"]: "Own weights: not those that the model of the configuration names.",
    "subset": "Subset: fewer examples than the data set has. These figures stand beside no published one.",
    "public-overlap": "Public overlap: the model's public training data hold texts of this data set.",
}
AUDITED = "Audited run: canaries stand in place of training records. Its figures are no results of the method."


def fill(template: str, **values: Any) -> str:
    """A template of this package, every text in it escaped. What UTF-8 cannot hold becomes a question mark."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")


def banners_of(run: RunRecord) -> list[str]:
    """What stands above the figures of a run, in a sentence each."""
    banners = [SCALES[run.scale]] if run.scale in SCALES else []
    banners += [MARKS[mark] for mark in run.marks if mark in MARKS]
    return banners + ([AUDITED] if run.canaries != "none" else [])


def data_uri(picture: Path) -> str:
    """A PNG file as the source of an `<img>`. Raises OSError where it cannot be read."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
