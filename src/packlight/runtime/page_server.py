"""Serves a page and its files to one browser on this machine, and takes its one answer.

It listens on the loopback address only, on a port of the system's choice; every path begins
with a random token, so that other programs and other pages cannot read the model.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import shutil
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
_POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A page that shares nothing with others gets a clock of microseconds, and threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PATIENCE_SECONDS = 30.0


class PageServer(ThreadingHTTPServer):
    """A running server; use it in a `with` statement.

    files: what may be read, by name (a path is streamed, bytes are sent as they are).
    limit_bytes: of the answer. policy: the Content-Security-Policy of all that is sent.
    arrived: the page is open. left: it is gone again, without an answer or after it. answered:
    `answer` holds what the page posted; None: it was too long.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, files: Mapping[str, Path | bytes], *, limit_bytes: int, policy: str = _POLICY
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.files = files
        self.limit_bytes = limit_bytes
        self.policy = policy
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.token = secrets.token_urlsafe(24)
        self.arrived = threading.Event()
        self.left = threading.Event()
        self.answered = threading.Event()
        self.closing = threading.Event()
        self.answer: bytes | None = None
        self._serving = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.closing.set()
        self.shutdown()
        self._serving.join()
        self.server_close()

    def address(self, name: str) -> str:
        """Where a file is read."""
        return f"{self.origin}/{self.token}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that is ended in the middle of a file is no error to print."""


class _Request(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_SECONDS

    def do_GET(self) -> None:
        name = self._name()
        if name == "alive":
            self._stay()
            return
        found = self.server.files.get(name) if name is not None else None
        if found is None:
            self._refuse(404)
            return
        if isinstance(found, bytes):
            self._begin(200, _type_of(name), len(found))
            self.wfile.write(found)
            return
        try:
            with found.open("rb") as file:
                self._begin(200, _type_of(name), found.stat().st_size)
                shutil.copyfileobj(file, self.wfile, 1 << 20)
        except FileNotFoundError:
            self._refuse(404)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        ours = self.headers.get("Origin") == self.server.origin
        kind = self.headers.get("Content-Type")
        known = self._name() == "answer" and length.isdecimal() and len(length) < 16
        if not (ours and known and kind == "application/json") or self.server.answered.is_set():
            self._refuse(404)
            return
        if int(length) <= self.server.limit_bytes:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                return
            self.server.answer = body
        self.server.answered.set()
        self._refuse(204 if self.server.answer is not None else 413)

    def _stay(self) -> None:
        """Hold the connection for as long as the page does."""
        self.close_connection = True
        self._begin(200, "text/plain", None)
        self.server.arrived.set()
        with contextlib.suppress(OSError, ValueError):
            while not self.server.closing.is_set():
                if select.select([self.connection], [], [], 0.1)[0]:
                    break
        self.server.left.set()

    def _name(self) -> str | None:
        """What is asked for, if whoever asks knows the token and calls the server by its name."""
        _, token, name = [*self.path.split("/", 2), "", ""][:3]
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        ours = self.headers.get("Host") == self.server.origin.removeprefix("http://")
        return name if known and ours else None

    def _begin(self, status: int, kind: str, length: int | None) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Type", kind)
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def _refuse(self, status: int) -> None:
        # What is left of a body that was not read would be taken for the next request.
        self.close_connection = True
        self._begin(status, "text/plain", 0)

    def version_string(self) -> str:
        return "packlight"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing is logged: paths hold the token."""


def _type_of(name: str | None) -> str:
    return _TYPES.get(Path(name or "").suffix, "application/octet-stream")
