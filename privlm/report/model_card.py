"""README.md of an exported model: what it was made of, what it measured, what its privacy is, and how it is loaded.

In the form that model hubs read: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from privlm.report.card import figure, privacy_card
from privlm.report.render import markdown
from privlm.report.store import RunRecord
from privlm.report.table import Table

NAME = "README.md"
MAX_RESULTS = 12
"""The first ones: runners report what matters most first."""


def model_card(run: RunRecord, folder: Path) -> str:
    """Of the model that `run` has trained and `folder` holds."""
    config = run.config
    base = config.get("model") or {}
    hub_id = base.get("hub_id")
    adapter = (config.get("adapter") or {}).get("name")
    loading = _loading(folder, hub_id or f"BASE, the folder of {run.name_of('model')}")
    front = {"base_model": hub_id, "library_name": "peft" if _adapter_config(folder) else None}
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in front.items() if value),
        "tags: [privlm]",
        "---",
        f"# {run.name_of('model')} after {run.task} on {run.name_of('data')}",
        "",
        f"- adapter: {adapter}",
        f"- base model: {hub_id or run.name_of('model')}",
        f"- data: {run.name_of('data')}; their licence may bind what is made of them",
        f"- privacy: {privacy_card(run.privacy, run.audit).headline}",
        f"- made by: `privlm run {' '.join(_shown(run.overrides))}` (scale {run.scale}, seed {run.seed})",
        *(f"- marks: {mark}" for mark in run.marks),
        "",
        *loading,
        markdown(_results(run)),
        *(f"- {note}" for note in (run.result or {}).get("notes", ())),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _shown(words: Iterable[str]) -> list[str]:
    """Without what says where files lie on the machine of whoever made the run: the card may be published."""
    return [word for word in words if ".path=" not in word and not word.startswith(("runs=", "recipe="))]


def _results(run: RunRecord) -> Table:
    rows = [
        [row.metric, row.split or "", figure(row), row.interval(".4g"), row.unit, "" if row.n is None else str(row.n)]
        for row in run.results[:MAX_RESULTS]
    ]
    return Table("results", "Results", ["metric", "measured on", "value", "95 % interval", "unit", "n"], rows)


def _loading(folder: Path, base: str) -> Iterator[str]:
    settings = _adapter_config(folder)
    if settings is None:
        return
    yield from ["```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    if str(settings.get("peft_type", "")).endswith("BOTTLENECK"):
        yield "import privlm.adapters.bottleneck  # peft has no such adapters; this makes them known to it"
    yield ""
    yield f'base = AutoModelForCausalLM.from_pretrained("{base}")'
    yield from ['model = PeftModel.from_pretrained(base, "THIS_FOLDER")', "```", ""]


def _adapter_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
