"""What stands before every route: who asks, from where, under which name, with what.

The server listens on the loopback, which any page in any browser here and any user of this
machine can reach. So a request must call it by its own name (no DNS rebinding), must not come
from another origin, must hold the session's cookie, and must not be one that a form of another
site could send.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packlight.runtime import page_server
from packlight.serve.errors import Refused

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, **page_server.HEADERS}
OPENING = "/open/"
_READING = ("GET", "HEAD")
_TYPES = ("application/json", "application/octet-stream")


@dataclass
class Door:
    """Who may come in.

    hosts: what the Host header may be. cookie: its name, which holds the port, since cookies do
    not. used: called with the next link once one was used.
    """

    hosts: frozenset[str]
    cookie: str
    used: Callable[[str], None] = field(default=lambda link: None)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    link: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def let_in(self, link: str) -> bool:
        """Whether this is the link that is good for one use; then the next one is made."""
        if not hmac.compare_digest(link.encode(), self.link.encode()):
            return False
        self.link = secrets.token_urlsafe(32)
        self.used(self.link)
        return True

    def knows(self, session: str) -> bool:
        """Whether a cookie holds this session's secret."""
        return hmac.compare_digest(session.encode(), self.session.encode())


def make_door(names: Sequence[str], port: int, used: Callable[[str], None]) -> Door:
    """The door of a server that is known by these names, on a port."""
    hosts = {f"{name}:{port}" for name in names}
    if port == 80:
        hosts |= set(names)  # browsers leave the usual port out
    return Door(frozenset(host.lower() for host in hosts), f"packlight-{port}", used)


class Guard:
    """Refuses what may not pass, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Request(scope))
        except Refused as refused:
            await answer_refused(Request(scope), refused)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, request: Request) -> None:
        headers, method = request.headers, request.method
        host = _only(headers, "host").lower()
        if host not in self.door.hosts:
            known = ", ".join(sorted(self.door.hosts))
            raise Refused(421, f"This server is not known by that name: it is {known}.")
        origin = _only(headers, "origin").lower() if "origin" in headers else ""
        site = headers.get("sec-fetch-site", "none")
        if origin not in ("", f"http://{host}") or site not in ("none", "same-origin"):
            raise Refused(403, "Another page asked for this, and only this server's own may.")
        opens = request.scope["path"].startswith(OPENING) and method == "GET"
        if not opens and not self.door.knows(request.cookies.get(self.door.cookie, "")):
            raise Refused(
                401,
                "Open the link that packlight serve printed: this browser has no key, or an "
                "old one.",
            )
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if method not in _READING and kind not in _TYPES:
            raise Refused(415, f"{method} needs the Content-Type {' or '.join(_TYPES)}.")


def _only(headers: Headers, name: str) -> str:
    """A header that is there once; '' for none or several."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else ""


def answer_refused(request: Request, refused: Refused) -> Response:
    """A refusal as JSON, or as text for whoever opens an address in a browser."""
    if request.scope["path"].startswith("/api/"):
        return JSONResponse(refused.to_json(), refused.status)
    return PlainTextResponse(refused.sentence + "\n", refused.status)
