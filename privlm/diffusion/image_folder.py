"""A folder of images with captions: what it says of each image, before any image is opened.

The captions stand in metadata.jsonl or metadata.csv, one for the whole folder or one in each of the folders train,
validation and test, as Hugging Face's `imagefolder` has it; or each in a .txt beside its image.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from privlm.data.readers import read_table
from privlm.data.table import Table, is_text
from privlm.diffusion import scenes
from privlm.diffusion.image_files import ENDINGS
from privlm.diffusion.image_rows import SPLITS
from privlm.diffusion.scenes import Scene
from privlm.errors import UsageError

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_ENDING = ".txt"
SPLIT_NAMES = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation", "dev": "validation"}
"""What a folder, or a value of the column `split`, may be called -> the split."""

BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(code) for code in range(0xFE00, 0xFE10)}
"""Characters that show nothing though Unicode calls them letters, marks or symbols."""


@dataclass(frozen=True)
class Sample:
    """A row as it lies there. split: None where nothing names it. problem: what rules it out, a clause."""

    file: Path | None
    text: str
    prompt: str
    where: str
    split: str | None
    scene: Scene | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """notes: sentences for the results."""

    samples: list[Sample]
    notes: list[str] = field(default_factory=list)


def read_folder(root: Path, data: Any) -> Found:
    """data: an ImagesConfig, of which the columns and how a csv is read count.

    Raises UsageError, naming file and line: no captions, a file of them that is malformed, a column that is not there,
    an image outside the folder, a split of another name.
    """
    if not root.is_dir():
        raise UsageError(f"data.path: there is no folder {root}")
    tables = _tables(root)
    if not tables:
        return Found(list(_beside(root)))
    index = _Index.of(root)
    found = [_of_table(root, path, index, data) for path in tables]
    notes = dict.fromkeys(note for one in found for note in one.notes)
    return Found([sample for one in found for sample in one.samples], list(notes))


def fingerprinted(root: Path) -> list[Path]:
    """The files below a folder that count: images, captions and their tables, in a fixed order."""
    kept = (*ENDINGS, CAPTION_ENDING)
    return [path for path in _files(root) if path.name in METADATA or path.suffix.lower() in kept]


def _files(root: Path) -> list[Path]:
    """Without hidden ones, which systems leave behind."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


# --- tables of captions ---------------------------------------------------------------------------------------------


def _tables(root: Path) -> list[Path]:
    """That of the folder, or those of its splits. Raises UsageError where two would say what one image shows."""
    folders = [root, *(folder for folder in sorted(root.iterdir()) if folder.name in SPLIT_NAMES)]
    found = [folder / name for folder in folders for name in METADATA if (folder / name).is_file()]
    of_root = [path for path in found if path.parent == root]
    doubled = of_root and len(found) > 1
    if doubled or len({path.parent for path in found}) < len(found):
        names = " and ".join(path.relative_to(root).as_posix() for path in found[:2])
        raise UsageError(f"data.path: {root} holds {names}, which say both what its images show: keep one of them")
    return found


@dataclass(frozen=True)
class _Index:
    """The images below a folder. by_stem: name without its ending -> the files of that name."""

    files: frozenset[str]
    by_stem: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, root: Path) -> _Index:
        names = [path.relative_to(root).as_posix() for path in _files(root)]
        by_stem: dict[str, list[str]] = {}
        for name in names:
            stem, dot, ending = name.rpartition(".")
            if dot and f".{ending}".lower() in ENDINGS:
                by_stem.setdefault(stem, []).append(name)
        return cls(frozenset(names), by_stem)

    def find(self, name: str) -> tuple[str | None, str | None]:
        """The file of a name with or without its ending, or the problem."""
        if name in self.files:
            return name, None
        candidates = self.by_stem.get(name, [])
        if len(candidates) > 1:
            return None, "several images of its name"
        return (candidates[0], None) if candidates else (None, "no image")


def _of_table(root: Path, path: Path, index: _Index, data: Any) -> Found:
    table = read_table(path, encoding=data.encoding, quoting=data.quoting)
    texts, prompts, note = _captions(table, data)
    names = table.column([data.file_column], "data.file_column")
    folder = path.parent.relative_to(root)
    seen: set[str] = set()
    samples = []
    for place, row in enumerate(table.rows()):
        where = f"{path.relative_to(root).as_posix()} {table.unit} {table.numbers[place]}"
        name = _inside(names[place], folder, f"{root}: {where}", data.file_column)
        file, problem = (None, "no file_name") if name is None else index.find(name)
        if file is not None and file in seen:
            problem = "image named twice"
        seen.update([file] if file is not None else [])
        text, of_text = caption(texts[place])
        prompt, of_prompt = caption(prompts[place])
        split = _split(row.get("split"), folder if name is None else PurePosixPath(name), f"{root}: {where}")
        at = None if file is None else root / file
        samples.append(Sample(at, text, prompt, where, split, _scene(row), problem or of_text or of_prompt))
    return Found(samples, [note] if note else [])


def _captions(table: Table, data: Any) -> tuple[list[Any], list[Any], str | None]:
    """Sentences and keywords; where one of the two columns is there, it is both, and a note says so."""
    both = data.text_column, data.prompt_column
    there = [name for name in both if name in table.columns]
    if not there:
        table.column(both, "data.text_column, data.prompt_column")  # refuses them, listing what is there
    texts, prompts = (table.columns[name if name in there else there[0]] for name in both)
    absent = [name for name in both if name not in there]
    note = (
        f"{table.path.name} has no column {absent[0]}: its {there[0]} is both, sentence and keywords" if absent else ""
    )
    return texts, prompts, note or None


def _inside(name: Any, folder: Path, where: str, column: str) -> str | None:
    """The path within the root of what a row names; None where it names nothing.

    Raises UsageError for a path that leads out of the folder: nobody's rows but an attacker's or a mistaken export's.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return None
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts:
        raise UsageError(f"{where}: {column} leads out of the folder: name images by their path within it")
    return (PurePosixPath(folder.as_posix()) / plain).as_posix()


def _split(value: Any, path: Path | PurePosixPath, where: str) -> str | None:
    """What the row says, else the folder of that name in which its image lies."""
    if value not in (None, ""):
        if value not in SPLIT_NAMES:
            raise UsageError(f"{where}: column split must hold {', '.join(SPLITS)}")
        return SPLIT_NAMES[value]
    return SPLIT_NAMES.get(path.parts[0]) if len(path.parts) > 1 else None


def _scene(row: Mapping[str, Any]) -> Scene | None:
    """What is to be seen, where columns of those names say it."""
    color, shape, count = row.get("color"), row.get("shape"), str(row.get("count"))
    if color in scenes.PALETTE and shape in scenes.SHAPES and count in map(str, scenes.COUNTS):
        return Scene(str(color), str(shape), int(count))
    return None


# --- a caption beside each image ------------------------------------------------------------------------------------


def _beside(root: Path) -> Iterator[Sample]:
    """Raises UsageError where no image has a caption: then the folder is no such folder."""
    images = [path for path in _files(root) if path.suffix.lower() in ENDINGS]
    if not any(path.with_suffix(CAPTION_ENDING).is_file() for path in images):
        raise UsageError(
            f"data.path: {root} has neither {' nor '.join(METADATA)}, nor an image with its caption beside it "
            f"(cat.png, cat{CAPTION_ENDING})"
        )
    seen: set[Path] = set()
    for path in images:
        beside, name = path.with_suffix(CAPTION_ENDING), path.relative_to(root)
        text, problem = _caption_file(beside)
        if beside in seen:
            problem = "several images of its name"
        seen.add(beside)
        yield Sample(path, text, text, name.as_posix(), _split(None, name, name.as_posix()), None, problem)


def _caption_file(path: Path) -> tuple[str, str | None]:
    if not path.is_file():
        return "", "no caption"
    try:
        return caption(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "", "caption that is not UTF-8"


def caption(value: Any) -> tuple[str, str | None]:
    """A caption with single blanks between its words, and what rules it out, if anything does."""
    if value is None:
        return "", "empty caption"
    if not is_text(value):
        return "", "caption that is no text"
    if "\0" in value:
        return "", "NUL character in its caption"
    text = " ".join(value.split())
    return text, None if any(map(_is_visible, text)) else "empty caption"


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ" and character not in BLANKS
