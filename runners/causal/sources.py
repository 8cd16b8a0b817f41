"""Finds and reads the files of the suites: in `data.path`, else those that ship with PrivLM."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from privlm import content
from privlm.content import Content
from privlm.errors import UsageError

EMBEDDED = Path(__file__).parent / "embedded"

KICIMAN = "kiciman_causal"
FILES: dict[str, tuple[str, ...]] = {
    "tuebingen": tuple(
        f"{KICIMAN}/tuebingen/{name}" for name in ("pairmeta.txt", "results.txt", "prompts.txt", "comp_prompts_aug.csv")
    ),
    "neuropathic": (f"{KICIMAN}/neuropathic/data.json", f"{KICIMAN}/neuropathic/result_prompts.csv"),
    "arctic": (f"{KICIMAN}/arctic/variables.txt", f"{KICIMAN}/arctic/ground_truth_adjacency.csv"),
    "crass": (f"{KICIMAN}/crass/prompts.csv",),
    "vignettes": tuple(
        f"{KICIMAN}/actual_causality/{name}{suffix}.csv"
        for suffix in ("", "_lab")
        for name in ("prompts", "groundtruth")
    ),
    "normality": ("bigbench_causal/causal_judgment.json",),
    "numeric": ("tuebingen_cdt/Tuebingen_pairs.csv", "tuebingen_cdt/Tuebingen_targets.csv"),
}
"""Family of suites -> its files, `<collection>/<file>`."""


class Sources:
    """The files of a data config. path: a folder with the collections in it, or one collection; None: as shipped."""

    def __init__(self, path: str | None) -> None:
        self.folder = Path(path).expanduser() if path else None
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"data.path: no folder {self.folder}")

    def locate(self, name: str) -> Path:
        """The file `<collection>/<file>`. Raises UsageError, naming where it was looked for."""
        inside = name.partition("/")[2]
        places = [EMBEDDED / name] if self.folder is None else [self.folder / name, self.folder / inside]
        for place in places:
            if place.is_file():
                return place
        if self.folder is None:
            raise UsageError(f"{name} does not ship with PrivLM: give data.path=FOLDER, the folder that holds it")
        raise UsageError(f"data.path: no file {name} or {inside} in {self.folder}")

    def fingerprint(self, families: Iterable[str]) -> str:
        """`sha256:...` of the content of all files of these families."""
        digest = hashlib.sha256()
        for name in sorted(name for family in families for name in FILES[family]):
            digest.update(self.locate(name).read_bytes())
        return f"sha256:{digest.hexdigest()}"

    def content(self, config: Any, families: Iterable[str]) -> Content:
        """Whether these families are the published ones: by the lines of their files."""
        digests = {
            family: content.digest_of_rows(family, [self.lines(name) for name in FILES[family]]) for family in families
        }
        return content.of_splits(config, content.source_name(self.folder or EMBEDDED), digests)

    def text(self, name: str) -> str:
        path = self.locate(name)
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not UTF-8") from None

    def lines(self, name: str) -> list[str]:
        return [line for line in self.text(name).split("\n") if line.strip()]

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise UsageError(f"{self.locate(name)} line {error.lineno}: not JSON") from None

    def table(self, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
        """The rows of a CSV file with a header. Raises UsageError for a missing column or a row of another length."""
        path = self.locate(name)
        reader = csv.DictReader(self.text(name).splitlines(keepends=True))
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path}: no column {', '.join(missing)}")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(f"{path} line {reader.line_num}: not {len(reader.fieldnames or ())} fields")
            rows.append({str(key): value for key, value in row.items()})
        return rows

    def unique(self, name: str, keys: Sequence[str]) -> None:
        """Raises UsageError for an id that stands twice."""
        seen = set()
        for key in keys:
            if key in seen:
                raise UsageError(f"{self.locate(name)}: '{key}' stands twice")
            seen.add(key)


def sent(prompt: str) -> str:
    """A prompt as the authors sent it: their files keep line ends as tabs."""
    return prompt.replace("\t", "\n")
