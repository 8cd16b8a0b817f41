"""The wire to a server of the OpenAI protocol, and what its refusals and broken connections mean.

The key is read from the environment when the connection is first used. It is in no message, and no message quotes what
was sent.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from privlm.errors import UsageError
from privlm.llm.endpoint.retry import CallFailure, retry_after
from privlm.llm.types import Status
from privlm.masking import MASK

if TYPE_CHECKING:
    import httpx2
    import openai

OVERLOADED = frozenset({429, 502, 503, 504, *range(520, 531)})
"""HTTP statuses of a server that is down or busy (from 520 on those of proxies in front of it, 529 overloaded)."""

PASSING: dict[int, Status] = {408: "timeout", 409: "server_error", 424: "server_error", 425: "server_error",
                              429: "rate_limited"}  # fmt: skip
LASTING = frozenset({501, 505})  # not implemented, HTTP version not supported

SAME_REQUEST = frozenset({307, 308})
"""Redirects that are followed, within their origin: the others turn a question into a GET."""
MAX_REDIRECTS = 3

TOO_LONG = re.compile(r"context|too long|maximum.{0,20}(length|tokens)|max_model_len", re.IGNORECASE)
FILTERED = frozenset({"content_filter", "content_policy_violation"})
MAX_MESSAGE = 200  # characters of a server's message
QUOTED = 40  # characters of a sent text whose appearance in a message makes it a quotation


def api_key(config: Any) -> str:
    """The key that the server asks for, empty where it asks for none. Raises UsageError where it is not set."""
    if config.api_key_env is None:
        return ""
    if key := os.environ.get(config.api_key_env):
        return key
    raise UsageError(
        f"llm.api_key_env: the environment variable {config.api_key_env} is not set; export it, or set "
        "llm.api_key_env=null for a server that needs no key"
    )


class Connection:
    """For many threads. config: privlm.llm.schema.EndpointLLMConfig."""

    def __init__(self, config: Any) -> None:
        self.url = config.base_url.rstrip("/")
        self._config = config
        self._lock = threading.Lock()
        self._client: openai.OpenAI | None = None
        self._key = ""

    def look_at_health(self) -> None:
        """GET /health beside /v1. Whatever page comes shows that somebody is there.

        Raises CallFailure where there is nobody, to be tried again only when a model is being loaded (503).
        """
        import httpx2

        self._open()
        timeout = httpx2.Timeout(self._config.timeout.connect)
        try:
            response = httpx2.get(f"{self.url.removesuffix('/v1')}/health", timeout=timeout)
        except (httpx2.ReadTimeout, httpx2.RemoteProtocolError, httpx2.ReadError):
            return  # somebody is there, and may know no /health
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            failure = _disconnected(error)
            failure.again = False
            raise failure from error
        if response.status_code == 503:
            raise CallFailure("server_error", "HTTP 503", http_status=503, gone=True)

    def post(self, path: str, body: dict[str, Any], sent: Sequence[str]) -> Any:
        """The decoded reply. sent: the texts in `body`, which no message may quote.

        Raises CallFailure for what failed, UsageError for a refusal of the key, the address, the model or the request.
        """
        import httpx2
        import openai

        client = self._open()
        headers = {} if self._key else {"Authorization": openai.Omit()}
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = client.post(path, body=body, cast_to=httpx2.Response, options={"headers": headers})
                break
            except openai.APIStatusError as error:
                if not 300 <= error.status_code < 400:
                    raise self._refused(error, sent) from error
                path = self._redirected(error)
            except openai.APIConnectionError as error:
                raise _disconnected(error.__cause__ or error) from error
        else:
            raise UsageError(f"llm.base_url: {self.url} redirects in a circle")
        try:
            echoed = bool(self._key) and self._key in response.text
            return json.loads(self._without_key(response.text)) if echoed else response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type")
            raise CallFailure("malformed", f"the reply is not JSON ({kind})", http_status=200) from error

    def _without_key(self, text: str) -> str:
        """A reply may repeat the key that was sent, and replies are recorded."""
        return text.replace(self._key, MASK) if self._key else text

    def message(self, body: Any, sent: Sequence[str]) -> str:
        """The message in a server's error object in one line, cut and without the key; "" where there is none, and
        where it quotes what was sent.
        """
        for name in ("error", "message", "detail"):
            body = body.get(name, body) if isinstance(body, dict) else body
        if not isinstance(body, str) or body.lstrip().startswith("<"):
            return ""
        if any(part and part[:QUOTED] in body for part in sent):
            return ""
        return " ".join(self._without_key(body).split())[:MAX_MESSAGE]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _open(self) -> openai.OpenAI:
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> openai.OpenAI:
        import httpx2
        import openai

        config = self._config
        self._key = api_key(config)
        limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        return openai.OpenAI(
            base_url=self.url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=httpx2.Timeout(config.timeout.read, connect=config.timeout.connect, pool=None),
            http_client=openai.DefaultHttpxClient(limits=limits, follow_redirects=False),
        )

    def _redirected(self, error: openai.APIStatusError) -> str:
        """The address of a redirect within the origin. Questions and the key go to nobody whom the user did not name.

        Raises UsageError for any other.
        """
        request, location = error.request.url, error.response.headers.get("location", "")
        target = request.join(location)
        if not location or _origin(target) != _origin(request):
            elsewhere = f" to {_origin(target)}" if location else ""
            raise UsageError(
                f"llm.base_url: {self.url} redirects{elsewhere} (HTTP {error.status_code}), and is not followed: give "
                "the address that is meant"
            )
        if error.status_code not in SAME_REQUEST:
            raise UsageError(
                f"llm.base_url: {self.url} redirects questions to {target.path} (HTTP {error.status_code}): give the "
                "address itself"
            )
        return str(target)

    def _refused(self, error: openai.APIStatusError, sent: Sequence[str]) -> Exception:
        """What a status of 400 or above means."""
        code, text = error.status_code, self.message(error.body, sent)
        detail = f"HTTP {code}{': ' if text else ''}{text}"
        if (status := _passing(code)) is not None:
            pause = retry_after(error.response.headers)
            gone = code in OVERLOADED
            return CallFailure(status, detail, http_status=code, gone=gone, retry_after=pause)
        if error.code in FILTERED:
            return CallFailure("refused", detail, http_status=code, again=False)
        if code == 413 or (code == 400 and TOO_LONG.search(text)):
            return CallFailure("client_error", detail, http_status=code, again=False)
        if code in (401, 403):
            name = self._config.api_key_env
            key = "a call without a key" if name is None else f"the key in {name}"
            return UsageError(f"llm.api_key_env: {self.url} refuses {key} ({detail})")
        place = f"llm.model={self._config.model}, llm.base_url={self.url}"
        hint = "no such model or address; an address usually ends in /v1" if code == 404 else "the request is refused"
        return UsageError(f"{place}: {hint} ({detail})")


def _passing(code: int) -> Status | None:
    """The answer's status when no attempt helps, for an HTTP status that is worth another; None for a lasting one."""
    if code >= 500 and code not in LASTING:
        return "server_error"
    return PASSING.get(code)


def _origin(url: httpx2.URL) -> str:
    """scheme://host:port, the port also where it is the scheme's own."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


def _disconnected(error: BaseException) -> CallFailure:
    """What a refused, broken or timed out connection means."""
    import httpx2

    if isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
        return CallFailure("timeout", "no answer within llm.timeout.read")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return CallFailure("server_error", "no http or https address", again=False, gone=True)
    detail = "connection lost"
    if isinstance(error, httpx2.ConnectTimeout):
        detail = "no connection within llm.timeout.connect"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", None) or cause.reason or "no handshake"
            return CallFailure("server_error", f"TLS: {reason}", again=False, gone=True)
        if isinstance(cause, socket.gaierror):
            detail = "unknown host"
        elif isinstance(cause, ConnectionRefusedError):
            detail = "connection refused"
    return CallFailure("server_error", detail, gone=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
