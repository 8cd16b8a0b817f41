"""Finds the files of a data set before anything heavy is imported: a local path, the embedded data, or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from privlm import hub
from privlm.data.schema import DataConfig
from privlm.errors import UsageError

EMBEDDED_SMS = Path(__file__).parent / "embedded" / "sms_spam" / "SMSSpamCollection"
EMBEDDED_SMS_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set.

    paths: split -> its files, in order. The splits of an SMS collection are all in its one file.
    fingerprint: `sha256:...` of the content, wherever it lies, or `hub:<id>/<config>@<revision>`.
    """

    paths: dict[str, tuple[Path, ...]]
    fingerprint: str


def locate(config: DataConfig) -> DataFiles:
    """Finds the files of `config`: `data.path` if given, else the embedded data (sms), else the hub or its cache.

    Imports no torch and answers within about two seconds unless it has files to download.

    Raises:
        UsageError: nothing is at hand (says what to do), or the embedded file was changed.
    """
    splits = (config.train_split, *config.eval_splits)
    if config.format == "sms":
        path = _sms_file(Path(config.path).expanduser()) if config.path else EMBEDDED_SMS
        files = DataFiles(dict.fromkeys(splits, (path,)), f"sha256:{_sha256(path)}")
        if path == EMBEDDED_SMS and files.fingerprint != f"sha256:{EMBEDDED_SMS_SHA256}":
            raise UsageError(f"{path}: the embedded data were changed (sha256 differs): reinstall privlm")
        return files
    if config.path:
        paths = [_split_file(Path(config.path).expanduser(), split) for split in splits]
        digests = "".join(map(_sha256, paths))
        by_split: dict[str, tuple[Path, ...]] = {split: (path,) for split, path in zip(splits, paths, strict=True)}
        return DataFiles(by_split, f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}")
    return _hub_files(config, splits)


def _sms_file(path: Path) -> Path:
    path = path / EMBEDDED_SMS.name if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"data.path: no file {path} (a collection of lines `label<TAB>text`)")
    return path


def _split_file(folder: Path, split: str) -> Path:
    for name in (f"{split}.tsv", f"{split}.jsonl"):
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.stem for path in folder.glob("*") if path.suffix in (".tsv", ".jsonl"))
    remedy = "give the folder that holds it"
    if there:
        remedy = f"choose data.train_split and data.eval_splits from what is there: {', '.join(there)}"
    raise UsageError(f"data.path: no file {split}.tsv or {split}.jsonl in {folder}; {remedy}")


def _hub_files(config: DataConfig, splits: tuple[str, ...]) -> DataFiles:
    """Parquet files `<hub_config>/<split>-*.parquet`, the layout of the hub's own conversions."""
    if not config.hub_id:
        raise UsageError(f"data '{config.name}' has neither data.path nor data.hub_id: set one of them")
    patterns = {split: f"{config.hub_config or 'data'}/{_hub_split(split)}-*.parquet" for split in splits}

    def is_complete(folder: Path) -> bool:
        return all(any(folder.glob(pattern)) for pattern in patterns.values())

    remedy = f"give data.path=FOLDER holding {', '.join(f'{split}.tsv' for split in splits)}"
    try:
        folder = hub.find_snapshot(config.hub_id, "dataset", is_complete)
    except hub.NotAtHandError as reason:
        raise UsageError(
            f"data '{config.name}' ({config.hub_id}) is not at hand: not in the hub cache, and {reason}; {remedy}, or "
            "data=sms_spam, which is embedded"
        ) from None
    if not is_complete(folder):
        hub.download(folder, config.hub_id, "dataset", list(patterns.values()))
    if not is_complete(folder):
        raise UsageError(f"data.hub_id: {config.hub_id} has no files {', '.join(patterns.values())}; {remedy}")
    paths = {split: tuple(sorted(folder.glob(pattern))) for split, pattern in patterns.items()}
    return DataFiles(paths, f"hub:{config.hub_id}/{config.hub_config}@{folder.name}")


def _hub_split(split: str) -> str:
    """GLUE's files say dev, dev_matched; its hub copy says validation, validation_matched."""
    return "validation" + split.removeprefix("dev") if split.startswith("dev") else split


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
