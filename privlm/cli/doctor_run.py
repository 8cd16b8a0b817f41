"""`privlm doctor RUN`: what a run has left behind that it should not, and which of its files are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from privlm import files, leftovers, rundir
from privlm.cli.doctor import Finding
from privlm.masking import holds_key
from privlm.report.store import RunRecord

TENSORS = (".safetensors", ".pt", ".bin", ".png")
MOST_READ = 64e6  # bytes of a file that is searched for keys


def check_run(run: RunRecord, *, clean: bool) -> Iterator[Finding]:
    """clean: removes what is left. Raises PrivLMError for a run that is in use then."""
    if clean:
        with rundir.locked(run.path):
            removed = leftovers.remove(run.path, run.status)
        yield from (Finding("ok", "left", f"{_name(path, run)} removed") for path in removed)
    yield from _left(run)
    yield from _damaged(run)
    yield from _keys(run)


def _left(run: RunRecord) -> Iterator[Finding]:
    remedy = f"privlm doctor {run.path} --clean, or the same command once more"
    found = leftovers.of_run(run.path, run.status)
    for path in found:
        what = "a write that was cut short" if path.suffix == ".tmp" else "made of the run's texts, and of no more use"
        yield Finding("problem", "left", f"{_name(path, run)}: {what}", remedy)
    if run.state != "done":
        for path in filter(Path.exists, leftovers.discarded(run.path, run.status)):
            text = f"{_name(path, run)}: made of the run's texts, kept as long as the run can go on"
            yield Finding("note", "left", text, f"finish the run, or remove {run.path}")
    if not found:
        yield Finding("ok", "left", "nothing is left that is of no use")


def _damaged(run: RunRecord) -> Iterator[Finding]:
    """Files that are not what was written, by the digests that the run knows."""
    _ = run.config, run.privacy, run.metrics()  # what cannot be read is noted in problems
    wrong = list(run.problems)
    gone = set(leftovers.discarded(run.path, run.status))
    outputs = {
        run.path / name: digest
        for stage in run.status.get("stages", {}).values()
        for name, digest in stage["outputs"].items()
        if not gone & {run.path / name, *(run.path / name).parents}
    }
    for path, digest in outputs.items():
        if not path.is_file() or files.sha256_file(path) != digest:
            wrong.append(f"{_name(path, run)} is absent or not what was written")
    for folder in sorted(run.path.glob("checkpoints/*/step-*")):
        try:
            wrong += [f"{_name(folder, run)}/{name} is not what was written" for name in files.damaged_files(folder)]
        except (OSError, ValueError) as error:
            wrong.append(f"{_name(folder, run)} cannot be verified ({type(error).__name__})")
    for text in wrong:
        yield Finding("problem", "files", text, "restore the file from a copy, or run again with --force")
    if not wrong:
        yield Finding("ok", "files", f"{len(outputs)} outputs and what the run knows of itself are what was written")
    if run.result is not None and "files" not in run.result:
        yield Finding("note", "files", "result.json is of an older version, without digests of itself and others")


def _keys(run: RunRecord) -> Iterator[Finding]:
    found = False
    for name, size in run.files():
        if not name.endswith(TENSORS) and size <= MOST_READ:
            text = (run.path / name).read_bytes().decode("utf-8", "replace")
            lines = [number for number, line in enumerate(text.split("\n"), start=1) if holds_key(line)]
            if lines:
                found = True
                remedy = "revoke the key, and take it out of the file"
                yield Finding("problem", "keys", f"{name} line {lines[0]}: what looks like a key", remedy)
    if not found:
        yield Finding("ok", "keys", "no file holds what looks like a key")


def _name(path: Path, run: RunRecord) -> str:
    return path.relative_to(run.path).as_posix()
