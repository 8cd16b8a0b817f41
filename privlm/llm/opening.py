"""From the group `llm` of a configuration to a LanguageModel in a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from privlm.errors import UsageError
from privlm.llm import tokens
from privlm.llm.budget import Budget, Spent
from privlm.llm.client import LanguageModel
from privlm.llm.record import FILE_NAME, CallRecord
from privlm.llm.types import Backend
from privlm.schema import require_packages


class Run(Protocol):
    """What is needed of a privlm.job.Job."""

    @property
    def directory(self) -> Path: ...

    @property
    def run_hash(self) -> str: ...

    @property
    def stop(self) -> Any: ...

    def say(self, message: str) -> None: ...

    def note(self, *notes: str) -> None: ...


ROLE = "llm"
"""The role of whoever is asked where a run has no other."""


@contextlib.contextmanager
def open_llm(config: Any, job: Run, role: str = ROLE, backend: Backend | None = None) -> Iterator[LanguageModel]:
    """The model that the group `llm` names, with its call record: llm_calls.sqlite of the run directory, or of
    llm.cache_dir. Says at the end what was asked.

    Nothing is loaded and no server is asked before the first request that the record does not answer.

    role: what the model is in this run (reader, judge, guide). Each has a bill of its own in the record: what earlier
        tries of the run have spent in a role counts in the budget of that role alone, and llm.budget holds for each.
    backend: asked in place of the one that `config` names, which then says only how answers are kept; it costs no
        money, and stays open: `open_llm(config.llm, job, role="guide", backend=LocalBackend.of(loaded))`.
    """
    with contextlib.ExitStack() as stack:
        caller = _caller(config, role, backend)
        price = _price(config) if backend is None else None
        if backend is None:
            backend = open_backend(config, lambda: job.stop.signum)
            stack.callback(backend.close)
        record = _open_record(config, job.directory)
        if record is not None:
            stack.callback(record.close)
        payer = job.run_hash if role == ROLE else f"{job.run_hash} {role}"
        spent = Spent() if record is None else record.spent(payer)
        model = LanguageModel(
            backend,
            record=record,
            cache=config.cache,
            budget=Budget.of(config.budget, spent=spent, role="" if role == ROLE else role),
            price=price,
            stop=lambda: job.stop.signum,
            label=caller,
            payer=payer,
            keep_prompts=config.trace == "full",
        )
        try:
            yield model
        finally:
            if model.usage.calls or model.usage.cached:
                job.say(f"{caller}: {model.usage}")
            if len(model.answered_by) > 1:
                job.note(f"{caller}: answered by {' and by '.join(model.answered_by)}; their answers make one result")


def open_backend(config: Any, stop: Callable[[], int] = lambda: 0) -> Backend:
    """The backend of a configuration. stop: signal number once the run is asked to stop."""
    if config.backend == "replay":
        from privlm.llm.replay import ReplayBackend

        return ReplayBackend(_replay_path(config), config.model)
    if config.backend == "endpoint":
        _require_client()
        from privlm.llm.endpoint.backend import EndpointBackend

        return EndpointBackend(config, stop)
    from privlm.llm.local.backend import LocalBackend

    return LocalBackend.from_files(config)


def llm_inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the model is made of, for a runner's `inputs`: name -> hexadecimal digest. No torch.

    Raises UsageError for weights, a file or a package that are not at hand.
    """
    if config.backend == "replay":
        from privlm.llm.replay import fingerprint

        return {"llm": fingerprint(_replay_path(config))}
    if config.backend == "local":
        from privlm.llm.local.weights import locate_llm

        return {"llm": locate_llm(config).fingerprint}
    _require_client()
    return {} if config.tokenizer is None else {"llm_tokenizer": tokens.fingerprint(config.tokenizer)}


def label(config: Any) -> str:
    """The words that chose the model, for messages."""
    return f"llm={config.name} llm.api={config.api}" if config.backend == "endpoint" else f"llm={config.name}"


def _caller(config: Any, role: str, backend: Backend | None) -> str:
    """How messages call a role: by the words that chose its model, by its name where it is not the only one."""
    words = label(config) if backend is None else backend.model
    return words if role == ROLE else f"{role} ({words})"


def _require_client() -> None:
    require_packages("llm=endpoint", "openai", "tenacity", extra="llm")


def _replay_path(config: Any) -> Path:
    if config.path is None:
        raise UsageError("llm.path: name the JSONL file of recorded answers, llm.path=FILE")
    return Path(config.path).expanduser()


def _open_record(config: Any, directory: Path) -> CallRecord | None:
    if config.cache == "off":
        return None
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else directory
    path = folder / FILE_NAME
    read_only = config.cache in ("read", "replay_only")
    if config.cache == "read" and not path.exists():
        return None
    lease = {"lease_seconds": config.timeout.read + 60.0} if config.backend == "endpoint" else {}
    return CallRecord(path, read_only=read_only, shared=config.cache_dir is not None, **lease)


def _price(config: Any) -> tuple[float, float] | None:
    price = config.get("price")
    if price is None or price.input is None or price.output is None:
        return None
    return price.input, price.output
