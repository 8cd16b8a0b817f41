"""What is at hand of a Hugging Face repository: the local cache first, then a hub that answers at once. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

HUB_TIMEOUT = 1.5  # seconds
PROBE_FILE = {"model": "config.json", "dataset": "README.md"}


class NotAtHandError(Exception):
    """Neither cached nor obtainable now; the message is the reason, a clause."""


def find_snapshot(
    repo_id: str,
    repo_type: str,
    is_complete: Callable[[Path], bool],
    *,
    probe: str | None = None,
    revision: str | None = None,
) -> Path:
    """Folder `snapshots/<revision>` of a repository; its name is the commit.

    A cached snapshot for which `is_complete` holds is taken without asking the network. Otherwise the hub is asked once
    and the folder of its newest revision, holding at least the probe file, is returned: `download` fetches the rest.

    probe: a file that every repository of this kind has; None: that of PROBE_FILE.
    revision: branch, tag or commit; None: the default branch.

    Raises:
        NotAtHandError: within about two seconds, when neither the cache nor the hub has it. HF_HUB_OFFLINE is honoured.
    """
    probe = probe or PROBE_FILE[repo_type]
    cached = huggingface_hub.try_to_load_from_cache(repo_id, probe, repo_type=repo_type, revision=revision)
    if isinstance(cached, str) and is_complete(Path(cached).parent):
        return Path(cached).parent
    if constants.HF_HUB_OFFLINE:
        raise NotAtHandError("HF_HUB_OFFLINE is set")
    commit = _commit(repo_id, repo_type, probe, revision)
    return Path(huggingface_hub.hf_hub_download(repo_id, probe, repo_type=repo_type, revision=commit)).parent


def is_cached(repo_id: str, repo_type: str) -> bool:
    """Whether something of the repository is in the local cache; nobody is asked."""
    return isinstance(huggingface_hub.try_to_load_from_cache(repo_id, PROBE_FILE[repo_type], repo_type=repo_type), str)


def download(directory: Path, repo_id: str, repo_type: str, patterns: list[str]) -> None:
    """Completes a folder of `find_snapshot` with the repository's files that match `patterns`."""
    huggingface_hub.snapshot_download(repo_id, repo_type=repo_type, revision=directory.name, allow_patterns=patterns)


def _commit(repo_id: str, repo_type: str, probe: str, revision: str | None) -> str:
    """Commit of a revision, or at the head of the repository's default branch.

    Asked in a daemon thread, since a resolver without network may block for far longer than any HTTP timeout.
    """
    url = huggingface_hub.hf_hub_url(repo_id, probe, repo_type=repo_type, revision=revision)
    answers: list[str | None] = []
    failures: list[str] = []

    def ask() -> None:
        try:
            answers.append(huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT).commit_hash)
        except Exception as error:  # the classes differ between the HTTP clients of huggingface_hub's versions
            failures.append(type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    commit = answers[0] if answers else None
    if commit is None:
        reason = failures[0] if failures else f"no answer within {HUB_TIMEOUT} s"
        raise NotAtHandError(f"the hub cannot be asked ({reason})")
    return commit
