"""Finds the files of a data set before anything heavy is imported: a local path, the embedded data, or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import hub
from privlm.content import repository_name, source_name
from privlm.data.readers import READERS
from privlm.data.schema import DataConfig, InstructionData
from privlm.errors import UsageError
from privlm.files import read_json, sha256_file

EMBEDDED = Path(__file__).parent / "embedded"
EMBEDDED_SMS = EMBEDDED / "sms_spam" / "SMSSpamCollection"
EMBEDDED_DOLLY = EMBEDDED / "dolly" / "dolly_mini.jsonl"
EMBEDDED_SHA256 = {
    EMBEDDED_SMS.name: "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
    EMBEDDED_DOLLY.name: "67182dbedc8bf6d8d8f60ebf7e40feda5717bc9961a9310f00e294bfb22a0d79",
}
ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS))
FORMS = f"{', '.join(READERS)}, each also .gz, or a folder of datasets.save_to_disk"


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set.

    paths: split -> its files (or folders of `datasets.save_to_disk`), in order. Where one file holds all splits, each
        has that file.
    fingerprint: `sha256:...` of the files, wherever they lie, or `hub:<id>/<config>@<revision>`.
    source: name of the file, the folder or the repository.
    """

    paths: dict[str, tuple[Path, ...]]
    fingerprint: str
    source: str

    @property
    def is_one(self) -> bool:
        """Whether the splits are not told apart by files."""
        return len(set(self.paths.values())) == 1


def locate(config: DataConfig) -> DataFiles:
    """Finds the files of labelled texts: `data.path` if given, else the embedded data (sms), else the hub or its cache.

    Imports no torch and answers within about two seconds unless it has files to download.

    Raises:
        UsageError: nothing is at hand (says what to do), or the embedded file was changed.
    """
    _require(config, "format", "labelled texts, e.g. data=sms_spam")
    return LOCATORS[config.format](config, _splits(config))


def locate_instructions(config: InstructionData) -> DataFiles:
    """The same for instruction data: one file or a folder of them, the embedded rows, or the hub."""
    _require(config, "template", "instructions, e.g. data=dolly_mini")
    splits = _splits(config)
    if config.path:
        path = Path(config.path).expanduser()
        if path.is_file() or is_saved(path):
            return one_file(path, splits)
        return split_files(path, splits, " (or give one file as data.path: it is split by its texts)")
    if config.embedded:
        return one_file(unchanged(EMBEDDED_DOLLY), splits)
    if not config.hub_id:
        raise UsageError(f"data.path: name the file or folder of data '{config.name}', data.path=FILE ({FORMS})")
    remedy = "give data.path=FILE"
    files, revision = from_hub(
        config.name, config.hub_id, config.hub_files, remedy, "data=dolly_mini, which is embedded"
    )
    if len(files) == 1:
        files = dict.fromkeys(splits, *files.values())
    absent = [split for split in splits if split not in files]
    if absent:
        raise UsageError(f"data.hub_files: no entry for the split {', '.join(absent)}; there are {', '.join(files)}")
    by_split = {split: files[split] for split in splits}
    return DataFiles(by_split, f"hub:{config.hub_id}@{revision}", repository_name(config.hub_id))


def _require(config: Any, field: str, wanted: str) -> None:
    """Refuses data of another schema, which the field tells: a run's own configuration has no types any more."""
    if not hasattr(config, field):
        raise UsageError(f"data: '{config.name}' is data of another kind; this task takes {wanted}")


def _splits(config: DataConfig | InstructionData) -> tuple[str, ...]:
    if not config.eval_splits or config.train_split in config.eval_splits:
        raise UsageError("data.eval_splits: name one split or more, none of them data.train_split")
    return (config.train_split, *config.eval_splits)


def _locate_sms(config: DataConfig, splits: tuple[str, ...]) -> DataFiles:
    """One collection for all splits."""
    if not config.path:
        return one_file(unchanged(EMBEDDED_SMS), splits)
    path = Path(config.path).expanduser()
    if path.is_dir() and not is_saved(path):
        path = path / EMBEDDED_SMS.name
    if not path.exists():
        raise UsageError(f"data.path: no file {path} (a collection of lines `label<TAB>text`, or {FORMS})")
    return one_file(path, splits)


def _locate_glue(config: DataConfig, splits: tuple[str, ...]) -> DataFiles:
    """A file per split, or the hub's parquet files `<hub_config>/<split>-*.parquet`, as its own conversions lie."""
    if config.path:
        return split_files(Path(config.path).expanduser(), splits)
    if not config.hub_id:
        raise UsageError(f"data '{config.name}' has neither data.path nor data.hub_id: set one of them")
    patterns = {split: f"{config.hub_config or 'data'}/{_hub_name(split)}-*.parquet" for split in splits}
    remedy = f"give data.path=FOLDER holding {', '.join(f'{split}.tsv' for split in splits)}"
    paths, revision = from_hub(config.name, config.hub_id, patterns, remedy, "data=sms_spam, which is embedded")
    fingerprint = f"hub:{config.hub_id}/{config.hub_config}@{revision}"
    return DataFiles(paths, fingerprint, repository_name(config.hub_id, config.hub_config))


LOCATORS: dict[str, Callable[[DataConfig, tuple[str, ...]], DataFiles]] = {"sms": _locate_sms, "glue": _locate_glue}
"""data.format -> how its files are found."""


# --- local files ----------------------------------------------------------------------------------------------------


def one_file(path: Path, splits: tuple[str, ...]) -> DataFiles:
    """All splits in one file or saved folder."""
    return DataFiles(dict.fromkeys(splits, (path,)), f"sha256:{_digest(path)}", source_name(path))


def split_files(folder: Path, splits: tuple[str, ...], hint: str = "") -> DataFiles:
    """A file or saved folder per split, by its name: `train.csv`, `dev.tsv.gz`; dev may also be called validation.

    hint: what else a message may advise.

    Raises UsageError, listing the splits that are there.
    """
    if folder.is_file():
        names = ", ".join(f"{split}{folder.suffix}" for split in splits)
        raise UsageError(f"data.path: {folder} is one file, and this data set takes a folder that holds {names}")
    paths = [_split_file(folder, split, hint) for split in splits]
    digests = "".join(map(_digest, paths))
    by_split: dict[str, tuple[Path, ...]] = {split: (path,) for split, path in zip(splits, paths, strict=True)}
    fingerprint = f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"
    return DataFiles(by_split, fingerprint, source_name(folder))


def _split_file(folder: Path, split: str, hint: str) -> Path:
    for name in dict.fromkeys((split, _hub_name(split))):
        if is_saved(folder / name):
            return folder / name
        for ending in ENDINGS:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    there = sorted({found for path in folder.glob("*") if (found := _split_name(path))})
    remedy = "give the folder that holds it"
    if there:
        remedy = f"choose data.train_split and data.eval_splits from what is there: {', '.join(there)}"
    elif is_saved(folder):
        remedy = "this folder of datasets.save_to_disk has no splits: save a DatasetDict"
    raise UsageError(f"data.path: no file {split}.tsv in {folder} (nor {FORMS}); {remedy}{hint}")


def _split_name(path: Path) -> str | None:
    """The split that a file or folder holds by its name."""
    if is_saved(path):
        return path.name
    return next((path.name.removesuffix(ending) for ending in ENDINGS if path.name.endswith(ending)), None)


def is_saved(path: Path) -> bool:
    """Whether it is a folder that `datasets.Dataset.save_to_disk` made."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def unchanged(path: Path) -> Path:
    """The embedded file, if it is as it was shipped."""
    if sha256_file(path) != EMBEDDED_SHA256[path.name]:
        raise UsageError(f"{path}: the embedded data were changed (sha256 differs): reinstall privlm")
    return path


def _digest(path: Path) -> str:
    """Of a file, or of the arrow files of a saved folder (they hold the class names too), whatever they are called."""
    try:
        if path.is_file():
            return sha256_file(path)
        names = [part["filename"] for part in read_json(path / "state.json")["_data_files"]]
        return hashlib.sha256("".join(sha256_file(path / name) for name in names).encode()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"data.path: {path} cannot be read ({type(error).__name__})") from None


# --- the hub --------------------------------------------------------------------------------------------------------


def from_hub(
    name: str, hub_id: str, patterns: Mapping[str, str], remedy: str, other: str
) -> tuple[dict[str, tuple[Path, ...]], str]:
    """Files of a hub's data set, from its cache if they are there: split -> files, and the revision.

    patterns: split -> pattern of its files. remedy, other: for the message, what the user can do, and another data set.

    Raises UsageError: not at hand, or no such files.
    """

    def is_complete(folder: Path) -> bool:
        return all(any(folder.glob(pattern)) for pattern in patterns.values())

    try:
        folder = hub.find_snapshot(hub_id, "dataset", is_complete)
    except hub.NotAtHandError as reason:
        raise UsageError(
            f"data '{name}' ({hub_id}) is not at hand: not in the hub cache, and {reason}; {remedy}, or {other}"
        ) from None
    if not is_complete(folder):
        hub.download(folder, hub_id, "dataset", list(patterns.values()))
    if not is_complete(folder):
        raise UsageError(f"data.hub_id: {hub_id} has no files {', '.join(patterns.values())}; {remedy}")
    return {split: tuple(sorted(folder.glob(pattern))) for split, pattern in patterns.items()}, folder.name


def _hub_name(split: str) -> str:
    """GLUE's files say dev, dev_matched; its hub copy says validation, validation_matched."""
    return "validation" + split.removeprefix("dev") if split.startswith("dev") else split
