"""A server of the OpenAI protocol on loopback that misbehaves as it is told, and counts what it is asked.

In front of a real server (`upstream`) it is a reverse proxy; alone it answers by itself, a prompt in capitals.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[["_Handler", dict[str, Any]], None]
"""Handles one call instead of answering it."""


@dataclass
class FaultyProxy:
    """Use as a context manager.

    calls: decoded bodies of all POSTs, in the order of arrival. keys: their Authorization headers. answered: how many
    were answered in full.
    """

    upstream: str | None = None
    delay: float = 0.0  # seconds before each answer
    port: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    answered: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._faults: deque[Fault | None] = deque()
        self._always: Fault | None = None
        self._lock = threading.Lock()
        self._under_way = 0
        self.released = threading.Event()
        server = self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _Handler)
        server.daemon_threads = True
        server.proxy = self  # type: ignore[attr-defined]
        self.port = server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def next(self, *faults: Fault | None) -> None:
        """What happens to the next calls; None: nothing."""
        self._faults.extend(faults)

    def always(self, fault: Fault | None) -> None:
        """What happens to all calls after those of `next`."""
        self._always = fault

    def prompts(self) -> list[str]:
        return [call["messages"][-1]["content"] if "messages" in call else call["prompt"] for call in self.calls]

    def take(self, body: dict[str, Any], key: str | None) -> Fault | None:
        with self._lock:
            self.calls.append(body)
            self.keys.append(key)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            return self._faults.popleft() if self._faults else self._always

    @property
    def busy(self) -> bool:
        return self._under_way > 0

    def leave(self) -> None:
        with self._lock:
            self._under_way -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        self.reply(200, {"status": "ok"})

    def do_POST(self) -> None:
        proxy: FaultyProxy = self.server.proxy
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = proxy.take(body, self.headers.get("Authorization"))
        try:
            time.sleep(proxy.delay)
            if fault is not None:
                fault(self, body)
                return
            if proxy.upstream is not None:
                self._forward(proxy.upstream, body)
            else:
                self.reply(200, answer(body))
            proxy.answered += 1
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            proxy.leave()

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _forward(self, upstream: str, body: dict[str, Any]) -> None:
        address = urlsplit(upstream)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
        connection.request("POST", self.path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        self.reply(response.status, response.read(), {"Content-Type": response.headers["Content-Type"]})
        connection.close()

    def log_message(self, *arguments: object) -> None:
        pass


def answer(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An answer of the protocol. changes: to its choice, and `usage` to the whole."""
    usage = changes.pop("usage", {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6})
    if "messages" in body:
        text = body["messages"][-1]["content"].upper()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    else:
        choice = {"index": 0, "text": str(body["prompt"]).upper(), "finish_reason": "stop"}
    content = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice | changes]}
    return content if usage is None else content | {"usage": usage}


# --- faults ---------------------------------------------------------------------------------------------------------


def replying(content: Any, status: int = 200, **headers: str) -> Fault:
    """This body, bytes or JSON, in place of an answer; Retry_After=... is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, body: handler.reply(status, content, named)


def failing(status: int, message: str = "no", code: str | None = None, **headers: str) -> Fault:
    """An error object of the protocol with this HTTP status."""
    return replying({"error": {"message": message, "code": code}}, status, **headers)


def changed(**changes: Any) -> Fault:
    """An answer whose choice is changed."""
    return lambda handler, body: handler.reply(200, answer(body, **changes))


def dropped(handler: _Handler, body: dict[str, Any]) -> None:
    """The connection is closed without a word."""
    handler.close_connection = True


def reset(handler: _Handler, body: dict[str, Any]) -> None:
    """The connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut(handler: _Handler, body: dict[str, Any]) -> None:
    """Half of an answer, then the end of the connection."""
    data = json.dumps(answer(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def slow(seconds: float, pieces: int = 4) -> Fault:
    """An answer that comes in pieces over `seconds`."""

    def fault(handler: _Handler, body: dict[str, Any]) -> None:
        data = json.dumps(answer(body)).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        size = len(data) // pieces + 1
        for start in range(0, len(data), size):
            time.sleep(seconds / pieces)
            handler.wfile.write(data[start : start + size])

    return fault


def hanging(handler: _Handler, body: dict[str, Any]) -> None:
    """No word until the proxy is closed."""
    handler.server.proxy.released.wait(600)
    handler.close_connection = True
