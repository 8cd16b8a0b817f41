"""Recorded answers in place of a model: a JSONL file that maps a prompt, or an item's name, to its answer.

A line is an object with `prompt` (text, or a list of messages) or `id`, and with `answer` (text) or `result` (a reply
of the OpenAI protocol). A table (.csv, .tsv) has these as columns, a .json file as objects of a list. Requests find
their answer by the prompt (of a conversation: all its messages, else the last one's text), else by their item's name;
never by the number of the line. Of several answers to one prompt, `sample_index` takes the first, the second and so on,
in the order of the file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm import files
from privlm.data.readers import read_table
from privlm.errors import UsageError
from privlm.llm.endpoint.protocol import parse_reply
from privlm.llm.types import Answer, GenerateRequest, Message, Norm, Pooling, Reply, Request, Score, ScoreRequest

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("privlm")

ID_FIELDS = ("id", "item", "pair_id", "qid")
SHOWN_MISSES = 3
UNNAMED = "recorded"  # llm.model where the user names none
TABLES = frozenset({".csv", ".tsv"})
FORM = (
    'a JSONL file has an object a line, {"prompt": ..., "answer": ...}, with "id" for "prompt" or "result" for '
    '"answer"; a .csv or .tsv file has the columns prompt (or id) and answer'
)


class ReplayBackend:
    """See privlm.llm.types.Backend. Scores are served too where the file holds them: lines with `context`,
    `continuation`, `sum_nll` and `num_tokens`.

    path: the file. model: whose answers they are.

    Raises UsageError, naming the line, for a file that is not as described above, or holds another model's replies.
    """

    name = "replay"
    parallel = 1

    def __init__(self, path: Path, model: str = "recorded") -> None:
        self.path = path
        self.model = f"{model} {fingerprint(path)[:16]}"
        self._answers: dict[Any, list[Answer]] = {}
        self._by_item: dict[str, list[Answer]] = {}
        self._scores: dict[tuple[str, str], Score] = {}
        for where, row in _rows(path):
            self._read(row, where)
        if not (self._answers or self._by_item or self._scores):
            raise UsageError(f"llm.path: {path} is empty: {FORM}")
        _check_model(model, [answer for answers in self._all() for answer in answers], path)
        self.num_duplicates = sum(len(answers) > 1 for answers in self._answers.values())
        if self.num_duplicates:
            logger.warning(
                "%s: prompts with several answers: %d; sample_index takes them in order", path, self.num_duplicates
            )
        generates = {"generate", "beams", "top_k"} if self._answers or self._by_item else set()  # however it was drawn
        self.capabilities = frozenset(generates | ({"score"} if self._scores else set()))

    def check_ready(self) -> None:
        """The file has been read."""

    def count_tokens(self, request: Request) -> int | None:
        return None

    def ask(self, requests: Sequence[Request]) -> Iterable[tuple[int, Reply]]:
        """Raises UsageError, before any reply, when the file lacks an answer."""
        found = [self._find(request) for request in requests]
        missing = [request for request, reply in zip(requests, found, strict=True) if reply is None]
        if missing:
            names = ", ".join(_name(request) for request in missing[:SHOWN_MISSES])
            more = ", ..." if len(missing) > SHOWN_MISSES else ""
            raise UsageError(f"{self.path} has no answer for {len(missing)} of {len(requests)} requests: {names}{more}")
        yield from ((number, reply) for number, reply in enumerate(found) if reply is not None)

    def holds(self, request: Request) -> bool:
        """Whether the file has an answer to it."""
        return self._find(request) is not None

    def hidden_states(self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw") -> Tensor:
        raise UsageError(f"llm=replay: {self.path} holds no hidden states; use a local model")

    def close(self) -> None: ...

    def _find(self, request: Request) -> Reply | None:
        if isinstance(request, ScoreRequest):
            return self._scores.get((request.context, request.continuation))
        answers: list[Answer] = []
        for key in _prompt_keys(request.prompt):
            answers = answers or self._answers.get(key, [])
        answers = answers or self._by_item.get(request.item or "", [])
        return answers[request.sample_index] if request.sample_index < len(answers) else None

    def _all(self) -> Iterable[list[Answer]]:
        return (*self._answers.values(), *self._by_item.values())

    def _read(self, row: dict[str, Any], where: str) -> None:
        if row.get("sum_nll") is not None:
            self._read_score(row, where)
            return
        answer = _answer(row, where)
        if row.get("prompt") is not None:
            self._answers.setdefault(_recorded_prompt(row["prompt"], where), []).append(answer)
            return
        item = next((row[name] for name in ID_FIELDS if row.get(name) is not None), None)
        if item is None:
            raise UsageError(f"{where} has neither `prompt` nor `id`, so no request can find it")
        self._by_item.setdefault(str(item), []).append(answer)

    def _read_score(self, row: dict[str, Any], where: str) -> None:
        try:
            score = Score(float(row["sum_nll"]), int(row["num_tokens"]), bool(row.get("truncated", False)))
            self._scores[row["context"], row["continuation"]] = score
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{where} is no score: it needs context, continuation, sum_nll, num_tokens") from error
        if not (0 <= score.sum_nll < math.inf and score.num_tokens > 0):
            raise UsageError(f"{where} is no score: sum_nll is a finite number from 0, num_tokens above 0")


def fingerprint(path: Path) -> str:
    """sha256 of the file. Raises UsageError when it is not at hand."""
    try:
        return files.sha256_file(path)
    except OSError as error:
        raise UsageError(f"llm.path: cannot read {path}: {error.strerror}") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each recorded answer. A byte order mark says how the file is encoded, else it is UTF-8."""
    if path.suffix in TABLES:
        table = read_table(path)
        if "answer" not in table.columns or not {"prompt", *ID_FIELDS} & set(table.columns):
            raise UsageError(f"llm.path: {path} has the columns {', '.join(table.columns)}: {FORM}")
        for number, row in enumerate(table.rows()):
            yield table.where(number), {name: value for name, value in row.items() if value != "" or name == "answer"}
        return
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"llm.path: {path} is not UTF-8 text, and has no byte order mark") from error
    if path.suffix == ".json":
        with contextlib.suppress(json.JSONDecodeError):
            return [json.dumps(row) for row in _listed(json.loads(text))]
    return text.split("\n")


def _listed(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [content]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON ({error.msg}): {FORM}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not an object with a prompt and its answer: {FORM}")
    return row


def _check_model(model: str, answers: Sequence[Answer], path: Path) -> None:
    """Raises UsageError where the recorded replies name another model than the one they are said to be of."""
    said = {answer.answered_by for answer in answers if answer.answered_by}
    others = sorted(name for name in said if not re.match(rf"(?:.*/)?{re.escape(model)}(?![A-Za-z0-9.])", name))
    if model != UNNAMED and others:
        raise UsageError(
            f"llm.model={model}: the replies in {path} are of {', '.join(others)}; name the one they are of"
        )


def _answer(row: dict[str, Any], where: str) -> Answer:
    if isinstance(row.get("answer"), str):
        text = row["answer"]
        return Answer(text, "ok" if text else "empty", finish_reason="stop")
    if "result" in row:
        answer = parse_reply(row["result"])
        if answer is not None:
            return answer
    raise UsageError(f"{where} has neither `answer`, a text, nor `result`, a reply of the OpenAI protocol")


def _recorded_prompt(prompt: Any, where: str) -> Any:
    if isinstance(prompt, str):
        return prompt
    try:
        return tuple(Message(message["role"], message["content"]) for message in prompt)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{where}: `prompt` is neither text nor a list of messages with role and content") from error


def _prompt_keys(prompt: str | tuple[Message, ...]) -> list[Any]:
    return [prompt] if isinstance(prompt, str) else [prompt, prompt[-1].content]


def _name(request: Request) -> str:
    if isinstance(request, GenerateRequest) and request.item is not None:
        return request.item
    text = request.context if isinstance(request, ScoreRequest) else _prompt_keys(request.prompt)[-1]
    return f"a prompt of {len(text)} characters"
