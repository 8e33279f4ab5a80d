"""An HTTP proxy that misbehaves on purpose, before a server that does not: what networks do to object stores."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACTS = ("pass", "refuse", "busy", "lose", "cut", "double", "delay")
"""``refuse``: the line is cut before the request is handed on. ``busy``: 503, not handed on. ``lose``: it is done and
the line is cut before a byte of the answer. ``cut``: it is done and half of the answer comes. ``double``: it is done
twice. ``delay``: it is done later."""
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Faults:
    """What the proxy does with each request, and what it saw."""

    decide: Callable[[int, str, str], str] = lambda _number, _method, _path: "pass"
    """(number of the request, method, path) → one of ``ACTS``."""
    delay_seconds: float = 0.05
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, act) of every request."""
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, method: str, path: str) -> str:
        """Note a request; return what becomes of it."""
        with self._lock:
            act = self.decide(len(self.requests), method, path)
            assert act in ACTS, act
            self.requests.append((method, path, act))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return act

    def end(self) -> None:
        """Note that a request is over."""
        with self._lock:
            self._at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, faults: Faults) -> None:
        self.upstream, self.faults = upstream, faults
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        act = self.server.faults.begin(self.command, self.path)
        try:
            self._answer(act, body)
        finally:
            self.server.faults.end()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815 - the library's names

    def _answer(self, act: str, body: bytes) -> None:
        if act == "refuse":
            self.close_connection = True
            return
        if act == "busy":
            self._send(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if act == "delay":
            time.sleep(self.server.faults.delay_seconds)
        answer = self._forward(body)
        if act == "double":
            answer = self._forward(body)
        if act == "lose":
            self.close_connection = True
            return
        self._send(*answer, cut=act == "cut")

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        line = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            line.request(self.command, self.path, body, dict(self.headers.items()))
            answer = line.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            line.close()

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), len(body))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection |= cut


@contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """Run a proxy before ``host:port``; yields its own ``http://host:port``."""
    server = _Server(upstream, faults)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
