"""An OpenAI-compatible server that fails on purpose, on the loopback address."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATUS = {"400": 400, "401": 401, "403": 403, "404": 404, "408": 408, "409": 409}
STATUS |= {"422": 422, "429": 429, "500": 500, "503": 503}

SOON = {"retry-after-ms": "10"}
"""What the client waits after a status, instead of half a second."""


@dataclass
class Asked:
    """One request as the server saw it."""

    at: float
    """Seconds, from any start."""
    body: Mapping[str, Any]
    fault: str | None
    key: str | None

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


def certain(body: Mapping[str, Any]) -> dict[str, float]:
    """Return an answer that is always m, with probability 0.8."""
    return {"m": 0.8, "M": 0.1, "I": 0.05}


@dataclass
class Stub:
    """Answers with the most probable of the tokens that `pick` gives probabilities of.

    A context manager; the address is known inside. `fault` names what goes wrong with a request,
    given its number and body; None: nothing.
    """

    pick: Callable[[Mapping[str, Any]], Mapping[str, float]] = certain
    fault: Callable[[int, Mapping[str, Any]], str | None] = lambda number, body: None
    refusal: str = "no"
    """What an error says."""
    headers: Mapping[str, str] = field(default_factory=lambda: dict(SOON))
    """Of errors."""
    delay: float = 0.0
    """Seconds that each answer takes."""
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any] | str] | None = None
    """What answers instead of `pick`; a string is the sentence of a 400."""
    requests: list[Asked] = field(default_factory=list)
    most_in_flight: int = 0

    def __enter__(self) -> Stub:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        """What `openai:ADDRESS#MODEL` takes."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request, well or badly."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            fault = self.fault(len(self.requests), body)
            key = handler.headers["Authorization"]
            self.requests.append(Asked(time.monotonic(), body, fault, key))
        try:
            time.sleep(self.delay)
        finally:
            with self._lock:
                self._in_flight -= 1
        self._reply(handler, body, fault)

    def _reply(
        self, handler: BaseHTTPRequestHandler, body: Mapping[str, Any], fault: str | None
    ) -> None:
        if fault in STATUS:
            message = {"error": {"message": self.refusal, "code": None}}
            return send(handler, STATUS[fault], json.dumps(message), self.headers)
        if fault == "hang":
            self._ended.wait(20)
            handler.close_connection = True
            return None
        if fault == "reset":
            # Closing at once, with nothing lingering, sends RST instead of FIN.
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True
            return None
        found = self._completion(body, fault) if self.complete is None else self.complete(body)
        if isinstance(found, str):
            return send(handler, 400, json.dumps({"error": {"message": found}}))
        whole = json.dumps(found)
        if fault == "html":
            return send(handler, 200, "<html>busy</html>", {}, "text/html")
        if fault == "bad-json":
            return send(handler, 200, whole[:-5])
        if fault == "cut":
            handler.close_connection = True
            return send(handler, 200, whole[:20], {"Content-Length": str(len(whole))})
        return send(handler, 200, whole)

    def _completion(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        shares = self.pick(body)
        drawn = max(shares, key=lambda token: shares[token])
        tops = [{"token": each, "logprob": math.log(share)} for each, share in shares.items()]
        logprobs = {
            "content": [
                {"token": drawn, "logprob": math.log(shares[drawn]), "top_logprobs": tops},
                {"token": "!", "logprob": 0.0, "top_logprobs": [{"token": "M", "logprob": 0.0}]},
            ]
        }
        content: str | None = None if fault == "null" else drawn
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}}
        choice["finish_reason"] = "stop"
        choice["logprobs"] = None if fault == "no-logprobs" else logprobs
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [] if fault == "empty" else [choice],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1},
        }


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    text: str,
    headers: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> None:
    """Send a reply."""
    raw = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", kind)
    handler.end_headers()
    handler.wfile.write(raw)


def _handler_of(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                stub.answer(self)
            except OSError:  # the client has gone
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except OSError:  # the same, while a reply is flushed
                self.close_connection = True

        def log_message(self, *given: object) -> None:
            """Say nothing."""

    return Handler


def nth(*faults: str | None) -> Callable[[int, Mapping[str, Any]], str | None]:
    """Return a `fault` that goes through `faults` and then lets all be well."""
    return lambda number, body: faults[number] if number < len(faults) else None


def always(fault: str) -> Callable[[int, Mapping[str, Any]], str | None]:
    """Return a `fault` that happens to every request."""
    return lambda number, body: fault
