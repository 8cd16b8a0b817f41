"""The trace of a program: one JSON object a line for each call of the model and each span around calls.

The lines of an item are kept until it ends and then appended as one block, its root span first, so that items which run
at the same time do not mix. An item that a kill has cut short leaves none and is traced anew. trace.schema.json, beside
this file, describes a line.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privlm import files
from privlm.llm.program.budget import num_tokens
from privlm.llm.types import Answer, GenerateRequest, Reply, Request

SCHEMA_FILE = Path(__file__).with_name("trace.schema.json")
TRACE_FILE = "trace.jsonl"


class Trace:
    """Where the lines of a run go.

    path: None keeps nothing. run: name of the run on each line. texts: False (llm.trace=hash) leaves out prompts,
    outputs and all other text that may come from the data, and keeps their hashes.
    """

    def __init__(self, path: Path | None = None, *, run: str = "", texts: bool = True) -> None:
        self.path = path
        self.run = run
        self.texts = texts
        if path is not None:
            files.cut_torn_line(path)

    def item(self, name: str, program: str) -> ItemTrace:
        return ItemTrace(self, name, program)


class ItemTrace:
    """The lines of one item. Span 0 is the item itself."""

    def __init__(self, trace: Trace, name: str, program: str) -> None:
        self._trace = trace
        self._name = name
        self._lines: list[dict[str, Any]] = []
        self._began: list[float] = []
        self.open_span(program, parent=None)

    def open_span(self, name: str, *, parent: int | None) -> int:
        return self._add(parent, {"kind": "span", "name": name, "status": "running", "values": {}}, ms=0.0)

    def note(self, span: int, values: dict[str, Any]) -> None:
        """Adds values to a span: numbers, names, lists of them."""
        self._lines[span]["values"] |= values if self._trace.texts else _without_texts(values)

    def close_span(self, span: int, status: str) -> None:
        self._lines[span] |= {"status": status, "ms": 1000 * (time.monotonic() - self._began[span])}

    def call(self, parent: int, step: str, request: Request, reply: Reply, *, ms: float) -> int:
        """ms: of the batch that the call was part of, where the reply does not know its own."""
        prompt = asdict(request) | {"item": None}
        content: dict[str, Any]
        if isinstance(request, GenerateRequest):
            assert isinstance(reply, Answer)
            content = {"prompt": prompt["prompt"], "continuation": None, "output": reply.text, "sum_nll": None}
            ms, status = reply.latency_ms or ms, reply.status
        else:
            assert not isinstance(reply, Answer)
            content = {"prompt": request.context, "continuation": request.continuation, "output": None}
            content["sum_nll"], status = reply.sum_nll, "ok"
        if not self._trace.texts:
            content |= {"prompt": None, "continuation": None, "output": None}
        line = {
            "kind": "call",
            "step": step,
            "prompt_sha256": hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(),
            **content,
            "parsed": None,
            "attempt": 1,
            "tokens": num_tokens(reply),
            "cached": reply.cached,
            "status": status,
        }
        return self._add(parent, line, ms=ms)

    def parsed(self, call: int, value: Any, *, attempt: int, status: str) -> None:
        """What was read from the output of a call, at which attempt."""
        value = value if isinstance(value, bool | int | float | str) or value is None else str(value)
        self._lines[call] |= {"parsed": value if self._trace.texts else _without_texts(value)}
        self._lines[call] |= {"attempt": attempt, "status": status}

    def close(self, status: str) -> None:
        """Ends the item and appends its lines."""
        self.close_span(0, status)
        if self._trace.path is not None:
            files.append_json_lines(self._trace.path, self._lines)

    def _add(self, parent: int | None, content: dict[str, Any], *, ms: float) -> int:
        span = len(self._lines)
        self._lines.append(
            {"run": self._trace.run, "item": self._name, "span": span, "parent": parent, **content, "ms": ms}
        )
        self._began.append(time.monotonic())
        return span


def read_items(path: Path) -> list[str]:
    """The names of all traced items, each once."""
    return list(dict.fromkeys(line["item"] for line in files.read_json_lines(path)))


def read_item(path: Path, item: str) -> dict[str, list[dict[str, Any]]]:
    """Item -> its lines as last traced, for `item` itself and all items whose last part (after a slash) it is."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in files.read_json_lines(path):
        name = line["item"]
        if name == item or name.rpartition("/")[2] == item:
            if line["span"] == 0:
                found[name] = []
            found[name].append(line)
    return found


def _without_texts(value: Any) -> Any:
    if isinstance(value, str):
        return "sha256:" + hashlib.sha256(value.encode()).hexdigest()[:16]
    if isinstance(value, dict):
        return {key: _without_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_texts(item) for item in value]
    return value
